//! The receiving process, as the one that sends sees it.

use std::io::{self, BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::receiver::{Mode, Order, RECEIVE, Tally};

/// A running receiver. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Collector {
    process: Child,
    /// None once it is to end.
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    endpoint: String,
}

impl Collector {
    pub(crate) fn start() -> io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(RECEIVE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let piped = || io::Error::other("it is piped");
        let orders = process.stdin.take().ok_or_else(piped)?;
        let answers = process.stdout.take().ok_or_else(piped)?;
        let mut collector = Self {
            process,
            orders: Some(orders),
            answers: BufReader::new(answers).lines(),
            endpoint: String::new(),
        };
        collector.endpoint = collector.hear()?;
        Ok(collector)
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn be(&mut self, mode: Mode) -> io::Result<()> {
        self.order(Order::Be(mode))
    }

    /// Has it close its connections: they are not part of what is measured.
    pub(crate) fn hush(&mut self) -> io::Result<()> {
        self.order(Order::Hush)
    }

    pub(crate) fn tally(&mut self) -> io::Result<Tally> {
        self.order(Order::Report)?;
        self.hear()?.parse()
    }

    fn order(&mut self, order: Order) -> io::Result<()> {
        match &mut self.orders {
            Some(orders) => writeln!(orders, "{order}"),
            None => Err(io::Error::other("the receiver is about to end")),
        }
    }

    fn hear(&mut self) -> io::Result<String> {
        let line = self.answers.next();
        line.unwrap_or_else(|| Err(io::Error::other("the receiver has ended")))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // It ends with its input.
        self.orders = None;
        let _ = self.process.wait();
    }
}
