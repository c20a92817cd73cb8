//! tmp
#![allow(clippy::print_stdout)]
use benches::span_cost::{Kind, measure};
fn main() {
    let bursts = 1000;
    if let Some(k) = std::env::args().nth(1) {
        let kind = match k.as_str() { "noop" => Kind::Noop, "batch" => Kind::Batch, _ => Kind::PerRequest };
        let c = measure(kind, 1, bursts);
        println!("{:?}", c);
        return;
    }
    let bursts = 200;
    for threads in [1, 2] {
        for round in 0..3 {
            let noop = measure(Kind::Noop, threads, bursts);
            print!("threads {threads} round {round}: noop {:.0}/{:.0}", noop.caller, noop.process);
            for kind in Kind::COMPARED {
                let cost = measure(kind, threads, bursts);
                print!("  {} +{:.0}/+{:.0}", kind.name(), cost.caller - noop.caller, cost.process - noop.process);
            }
            println!();
        }
    }
}
