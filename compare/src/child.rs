//! One contestant in one scenario: a process of its own, so that it may hang, panic or exit.

use std::io::{self, Read as _};
use std::thread;
use std::time::Duration;

use crate::contestant::{Caller, Contestant, Failed};
use crate::protocol::{Done, Line};
use crate::scenario::{Ending, Scenario, Size, Traffic};
use crate::service::{Said, Service, ended, held_up_ms};

/// How often it says how far it is, in case it never says more.
const PROGRESS: Duration = Duration::from_millis(200);

/// Runs the scenario and says what came of it.
pub(crate) fn run(
    scenario: &Scenario,
    contestant: Contestant,
    size: Size,
    url: &str,
) -> Result<(), Failed> {
    thread::spawn(|| {
        loop {
            thread::sleep(PROGRESS);
            Line::Ended(ended()).say();
        }
    });
    match scenario.traffic {
        Traffic::Threads(traffic) => {
            let service = Service::start(contestant, Caller::Threads, scenario.signal, url)?;
            let said = traffic(&service, size);
            end(&service, said, scenario.ending);
        }
        Traffic::CurrentThread(traffic) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let service =
                    Service::start(contestant, Caller::CurrentThread, scenario.signal, url)?;
                let said = traffic(&service, size).await;
                end(&service, said, scenario.ending);
                Ok::<(), Failed>(())
            })?;
        }
    }
    Ok(())
}

fn end(service: &Service, said: Said, ending: Ending) {
    let done = Done {
        ended: ended(),
        held_up_ms: held_up_ms(),
        grown_bytes: service.grown_bytes(),
        said,
        account: service.account(),
    };
    Line::Done(done).say();
    if ending == Ending::Stay {
        // The parent closes it when nothing more arrives.
        let _ = io::stdin().read_to_end(&mut Vec::new());
    }
    std::process::exit(0);
}
