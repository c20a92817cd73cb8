//! The parent's part of a run: the collector, the child process, and the end of it.

use std::io::{self, BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use demo::receiver::Receiver;

use crate::CHILD;
use crate::contestant::{Contestant, Signal};
use crate::outcome::{Arrival, End, Outcome, Run};
use crate::protocol::{Done, Line};
use crate::scenario::{Scenario, Size};

/// Nothing has arrived for this long, and not everything is there: nothing will.
const QUIET: Duration = Duration::from_millis(1_500);
const POLL: Duration = Duration::from_millis(10);

/// A child process, and what it says.
struct Contest<'a> {
    scenario: &'a Scenario,
    child: Child,
    lines: mpsc::Receiver<Line>,
    collector: Receiver,
    /// When the collector is to come back.
    back_at: Option<Instant>,
    ended: u64,
}

/// Runs one contestant through one scenario.
pub(crate) fn run(scenario: &Scenario, contestant: Contestant, size: Size) -> io::Result<Outcome> {
    let collector = Receiver::slow_http(scenario.answer_after)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args([CHILD, scenario.name, contestant.key(), size.name()])
        .arg(collector.endpoint() + scenario.signal.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = listen(&mut child)?;
    let mut contest = Contest {
        scenario,
        child,
        lines,
        collector,
        back_at: None,
        ended: 0,
    };
    let (end, done) = contest.watch()?;
    if let Some(done) = &done {
        contest.wait_for_the_rest(done.ended);
    }
    // It may be gone already.
    let _ = contest.child.kill();
    contest.child.wait()?;
    let arrivals = match scenario.signal {
        Signal::Spans => all_of(contest.collector.received()),
        Signal::Logs => all_of(contest.collector.logs()),
    };
    let run = Run {
        end,
        ended: contest.ended,
        done,
        arrivals,
    };
    Ok(Outcome::new(scenario, contestant, run))
}

fn all_of<T: Into<Arrival>>(received: Vec<T>) -> Vec<Arrival> {
    received.into_iter().map(T::into).collect()
}

fn listen(child: &mut Child) -> io::Result<mpsc::Receiver<Line>> {
    let out = child.stdout.take();
    let out = out.ok_or_else(|| io::Error::other("the output is piped"))?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let Ok(line) = serde_json::from_str(&line) else {
                continue;
            };
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    Ok(lines)
}

impl Contest<'_> {
    /// Does what the child says until it is done, gone, or over its time.
    fn watch(&mut self) -> io::Result<(End, Option<Done>)> {
        let deadline = Instant::now() + self.scenario.limit;
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Ok((End::Hung, None));
            }
            if self.back_at.is_some_and(|at| at <= now) {
                self.back_at = None;
                self.collector.up()?;
            }
            let next = self.back_at.map_or(deadline, |at| at.min(deadline));
            match self.lines.recv_timeout(next - now) {
                Ok(Line::Ended(items)) => self.ended = items,
                Ok(Line::CollectorDown(millis)) => {
                    self.collector.down();
                    self.back_at = Some(Instant::now() + Duration::from_millis(millis));
                }
                Ok(Line::Done(done)) => return Ok((End::Done, Some(done))),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok((End::Failed, None)),
            }
        }
    }

    /// Waits as long as something may still arrive. What a flush has missed is not lost yet.
    fn wait_for_the_rest(&self, ended: u64) {
        let count = || match self.scenario.signal {
            Signal::Spans => self.collector.count(),
            Signal::Logs => self.collector.count_logs(),
        };
        let mut last = (count(), Instant::now());
        while (last.0 as u64) < ended && last.1.elapsed() < QUIET {
            thread::sleep(POLL);
            let now = count();
            if now != last.0 {
                last = (now, Instant::now());
            }
        }
    }
}
