//! A collector on a real socket that does wrong what it is told, and is well otherwise.

use std::collections::VecDeque;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use rustls::{ServerConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use crate::fault::{Certificate, Fault, answer, reset};
use crate::signals;
use crate::table::Faults;
use crate::tls;

/// What the kernel keeps of a request that nobody reads, and of an answer.
const SOCKET_BUFFER: usize = 64 << 10;

/// Keeps its port until the test process ends, so that no other row can meet it there.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    https: bool,
    /// There until it listens.
    closed: Mutex<Option<Socket>>,
    shared: Arc<Shared>,
}

/// A request that was read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    /// Of spans, log records or data points, in the order of the alphabet.
    pub(crate) names: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    https: bool,
    script: Mutex<Script>,
    received: Mutex<Vec<Received>>,
    /// Bytes that the kernel took of answers.
    sent: AtomicU64,
    /// Connections on which something is going wrong now.
    failing: AtomicU64,
}

#[derive(Debug)]
struct Script {
    faults: VecDeque<Fault>,
    last_stays: bool,
    /// Attempts that were met, by a fault or by an answer of a collector that is well.
    met: u64,
}

/// Counts what is written.
struct Counting<'a, S> {
    stream: S,
    sent: &'a AtomicU64,
}

// ===== impl Server =====

impl Server {
    pub(crate) fn start(faults: &Faults, https: bool) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Connections inherit them. Of what is larger, no more than that is under way.
        socket.set_recv_buffer_size(SOCKET_BUFFER).unwrap();
        socket.set_send_buffer_size(SOCKET_BUFFER).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&address.into()).unwrap();
        let server = Self {
            address: socket.local_addr().unwrap().as_socket().unwrap(),
            https,
            closed: Mutex::new(Some(socket)),
            shared: Arc::new(Shared {
                https,
                script: Mutex::new(Script {
                    faults: faults.in_turn.iter().cloned().collect(),
                    last_stays: faults.last_stays,
                    met: 0,
                }),
                received: Mutex::default(),
                sent: AtomicU64::new(0),
                failing: AtomicU64::new(0),
            }),
        };
        // A port that is bound and not listened on refuses connections, and nobody else can take it.
        if !matches!(faults.in_turn.first(), Some(Fault::Refused)) {
            server.listen();
        }
        server
    }

    /// From now on it is well.
    pub(crate) fn heal(&self) {
        self.shared.script().faults.clear();
        self.listen();
    }

    fn listen(&self) {
        let Some(socket) = self.closed.lock().unwrap().take() else {
            return;
        };
        socket.listen(128).unwrap();
        let listener = TcpListener::from(socket);
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // How a connection ends is its fault's matter.
                thread::spawn(move || drop(shared.serve(stream)));
            }
        });
    }

    pub(crate) fn endpoint(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    pub(crate) fn met(&self) -> u64 {
        self.shared.script().met
    }

    pub(crate) fn failing(&self) -> u64 {
        self.shared.failing.load(Ordering::Relaxed)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

// ===== impl Script =====

impl Script {
    /// The next fault, if it is one of those wanted.
    fn take(&mut self, wanted: impl Fn(&Fault) -> bool) -> Option<Fault> {
        if !self.faults.front().is_some_and(wanted) {
            return None;
        }
        self.met += 1;
        if self.last_stays && self.faults.len() == 1 {
            return self.faults.front().cloned();
        }
        self.faults.pop_front()
    }
}

// ===== impl Shared =====

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    fn failing<T>(&self, fault: impl FnOnce() -> T) -> T {
        self.failing.fetch_add(1, Ordering::Relaxed);
        let result = fault();
        self.failing.fetch_sub(1, Ordering::Relaxed);
        result
    }

    fn serve(&self, socket: TcpStream) -> io::Result<()> {
        let fault = self.script().take(Fault::is_of_connection);
        if let Some(fault) = fault {
            return self.failing(|| fault.meet_connection(socket));
        }
        let stream = socket.try_clone()?;
        if !self.https {
            return self.requests(stream, &socket);
        }
        let shown = self.script().take(|fault| matches!(fault, Fault::Shows(_)));
        let certificate = match shown {
            Some(Fault::Shows(certificate)) => certificate,
            _ => Certificate::Good,
        };
        let connection =
            ServerConnection::new(tls::server(certificate)).map_err(io::Error::other)?;
        self.requests(StreamOwned::new(connection, stream), &socket)
    }

    fn requests(&self, stream: impl Read + Write, socket: &TcpStream) -> io::Result<()> {
        let counting = Counting {
            stream,
            sent: &self.sent,
        };
        let mut stream = BufReader::new(counting);
        while let Some(head) = read_head(&mut stream)? {
            let early = self.script().take(Fault::needs_large_request);
            if early.is_some() {
                return reset(socket);
            }
            let request = read_rest(&head, &mut stream)?;
            self.received.lock().unwrap().push(request);
            let fault = self.script().take(|_| true);
            let goes_on = match fault {
                Some(fault) => self.failing(|| fault.meet_request(stream.get_mut(), socket))?,
                None => {
                    self.script().met += 1;
                    answer(200).write_to(stream.get_mut())?;
                    true
                }
            };
            if !goes_on {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Up to the empty line, or `None` if the client has no more requests.
fn read_head(stream: &mut impl io::BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', &mut head)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

fn read_rest(head: &[u8], stream: &mut impl Read) -> io::Result<Received> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).map_err(io::Error::other)?;
    let header = |name: &str| {
        let found = request
            .headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))?;
        String::from_utf8(found.value.to_vec()).ok()
    };
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let path = request.path.unwrap_or_default();
    Ok(Received {
        path: path.to_owned(),
        authorization: header("authorization"),
        names: signals::names(path, &body),
    })
}

// ===== impl Counting =====

impl<S: Read> Read for Counting<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl<S: Write> Write for Counting<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes)?;
        self.sent.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
