//! What a collector can do wrong to one connection or one request, down to the bytes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message as _;
use socket2::SockRef;

use crate::table::LATE;

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    // With the connection, before a request is read.
    /// Nobody listens.
    Refused,
    AcceptedThenClosed,
    /// A TLS server with this certificate, that is well otherwise.
    Shows(Certificate),
    PlainOnTls,
    SilentOnTls,

    // With a request.
    /// When the first bytes of the request are there. It is larger than what the connection holds.
    ResetWhileSending,
    ResetWhileAnswering,
    Silent,
    /// So many bytes of an answer come at once, the others one each second.
    AByteASecond(usize),
    Garbage(&'static [u8]),
    EndlessHead,
    EndlessInterim,
    CutShort,
    CutShortInChunks,
    BrokenChunks,
    Answers(Answer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// From an authority that the client trusts, for the name that it asks for.
    Good,
    SelfSigned,
    OfAnother,
    Expired,
}

/// A whole answer, which may still be one that the client does not like.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: u16,
    asks: Option<Asks>,
    redirects: bool,
    body: Body,
    pub(crate) late: bool,
}

/// A `Retry-After`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asks {
    For(&'static str),
    /// A date that is so far away when the answer is made.
    DateIn(Duration),
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Of(Vec<u8>),
    Gigabyte,
    GigabyteInChunks,
    /// Until the connection ends.
    Endless,
    GzipOf1Gigabyte,
    GzipOf10Gigabytes,
}

/// An answer whose body takes five minutes, one byte a second.
pub(crate) const SLOW_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 300\r\n\r\n";

/// Where redirects lead, with a secret that is to be found nowhere.
const ELSEWHERE: &str = "/elsewhere?key=s3cret";

pub(crate) fn answer(status: u16) -> Answer {
    Answer {
        status,
        asks: None,
        redirects: false,
        // Whatever a collector says may repeat a credential.
        body: match status {
            200..=299 => Body::Of(Vec::new()),
            _ => Body::Of(b"s3cret is no good".to_vec()),
        },
        late: false,
    }
}

// ===== impl Fault =====

impl Fault {
    /// Whether it happens before anything is read. If so, there is no TLS either, unless the fault brings it along.
    pub(crate) fn is_of_connection(&self) -> bool {
        matches!(
            self,
            Self::Refused | Self::AcceptedThenClosed | Self::PlainOnTls | Self::SilentOnTls
        )
    }

    pub(crate) fn is_of_https(&self) -> bool {
        matches!(self, Self::Shows(_) | Self::PlainOnTls | Self::SilentOnTls)
    }

    /// Whether it needs a request that is still being sent when its first bytes have arrived.
    pub(crate) fn needs_large_request(&self) -> bool {
        matches!(self, Self::ResetWhileSending)
    }

    /// Whether it sends more than anybody would read.
    pub(crate) fn is_large(&self) -> bool {
        let is_large = |answer: &Answer| !matches!(answer.body, Body::Of(_));
        matches!(self, Self::EndlessHead)
            || matches!(self, Self::Answers(answer) if is_large(answer))
    }

    /// Does it to a connection on which nothing was read.
    pub(crate) fn meet_connection(&self, mut stream: TcpStream) -> io::Result<()> {
        match self {
            Self::PlainOnTls => {
                answer(400).write_to(&mut stream)?;
                until_closed(&mut stream)
            }
            Self::SilentOnTls => until_closed(&mut stream),
            _ => Ok(()),
        }
    }

    /// Does it to a request that was read. Returns whether the connection can go on.
    pub(crate) fn meet_request(
        &self,
        stream: &mut (impl Read + Write),
        socket: &TcpStream,
    ) -> io::Result<bool> {
        match self {
            Self::Answers(answer) => {
                answer.write_to(stream)?;
                return Ok(answer.body.ends_by_itself());
            }
            Self::Silent => until_closed(stream)?,
            Self::ResetWhileAnswering => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789")?;
                reset(socket)?;
            }
            Self::AByteASecond(at_once) => {
                let (now, later) = SLOW_HEAD.as_bytes().split_at(*at_once);
                stream.write_all(now)?;
                for byte in later.iter().chain([0; 300].iter()) {
                    thread::sleep(Duration::from_secs(1));
                    stream.write_all(&[*byte])?;
                }
            }
            Self::Garbage(bytes) => stream.write_all(bytes)?,
            Self::EndlessHead => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
                for_ever(stream, b"x-more: and more, and more, and more\r\n")?;
            }
            // Slowly: this is about the deadline, not about who is faster.
            Self::EndlessInterim => loop {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                thread::sleep(Duration::from_millis(1));
            },
            Self::CutShort => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789")?;
            }
            Self::CutShortInChunks => stream.write_all(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n",
            )?,
            Self::BrokenChunks => stream.write_all(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ns3cret\r\n0123456789\r\n",
            )?,
            other => unreachable!("{other:?} is none of a request that was read"),
        }
        Ok(false)
    }
}

impl From<Answer> for Fault {
    fn from(answer: Answer) -> Self {
        Self::Answers(answer)
    }
}

/// Closes the connection with RST in place of FIN.
pub(crate) fn reset(socket: &TcpStream) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

fn until_closed(stream: &mut impl Read) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}

fn for_ever(stream: &mut impl Write, line: &[u8]) -> io::Result<()> {
    let block = line.repeat(1000);
    loop {
        stream.write_all(&block)?;
    }
}

// ===== impl Answer =====

impl Answer {
    pub(crate) fn asks(mut self, asks: impl Into<Asks>) -> Self {
        self.asks = Some(asks.into());
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn late(mut self) -> Self {
        self.late = true;
        self
    }

    pub(crate) fn redirects(mut self) -> Self {
        self.redirects = true;
        self
    }

    pub(crate) fn rejects(self, rejected_spans: i64) -> Self {
        let response = ExportTraceServiceResponse {
            partial_success: Some(ExportTracePartialSuccess {
                rejected_spans,
                error_message: "s3cret is over its quota".to_owned(),
            }),
        };
        self.body(Body::Of(response.encode_to_vec()))
    }

    pub(crate) fn write_to(&self, stream: &mut impl Write) -> io::Result<()> {
        if self.late {
            thread::sleep(LATE);
        }
        let mut head = format!("HTTP/1.1 {} s3cret\r\n", self.status);
        if let Some(asks) = self.asks {
            head += &format!("retry-after: {}\r\n", asks.value());
        }
        if self.redirects {
            head += &format!("location: {ELSEWHERE}\r\n");
        }
        stream.write_all(head.as_bytes())?;
        self.body.write_to(stream)
    }
}

// ===== impl Asks =====

impl Asks {
    fn value(self) -> String {
        match self {
            Self::For(text) => text.to_owned(),
            Self::DateIn(wait) => httpdate::fmt_http_date(SystemTime::now() + wait),
        }
    }
}

impl From<&'static str> for Asks {
    fn from(text: &'static str) -> Self {
        Self::For(text)
    }
}

// ===== impl Body =====

impl Body {
    const GIGABYTE: usize = 1 << 30;
    const BLOCK: usize = 64 << 10;

    fn ends_by_itself(&self) -> bool {
        !matches!(self, Self::Endless)
    }

    /// The rest of the head, and the body.
    fn write_to(&self, stream: &mut impl Write) -> io::Result<()> {
        let block = vec![b'x'; Self::BLOCK];
        let blocks = Self::GIGABYTE / Self::BLOCK;
        match self {
            Self::Of(bytes) => {
                write!(stream, "content-length: {}\r\n\r\n", bytes.len())?;
                stream.write_all(bytes)
            }
            Self::Gigabyte => {
                write!(stream, "content-length: {}\r\n\r\n", Self::GIGABYTE)?;
                (0..blocks).try_for_each(|_| stream.write_all(&block))
            }
            Self::Endless => {
                write!(stream, "connection: close\r\n\r\n")?;
                for_ever(stream, &block)
            }
            Self::GigabyteInChunks => {
                write!(stream, "transfer-encoding: chunked\r\n\r\n")?;
                write_chunks(stream, &block, blocks)
            }
            Self::GzipOf1Gigabyte => write_gzip(stream, 100),
            Self::GzipOf10Gigabytes => write_gzip(stream, 1000),
        }
    }
}

impl<const LEN: usize> From<&[u8; LEN]> for Body {
    fn from(bytes: &[u8; LEN]) -> Self {
        Self::Of(bytes.to_vec())
    }
}

/// A gzip file has any number of members, of which each here is ten kilobytes that hold ten megabytes.
fn write_gzip(stream: &mut impl Write, members: usize) -> io::Result<()> {
    static MEMBER: OnceLock<Vec<u8>> = OnceLock::new();
    let member = MEMBER.get_or_init(|| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; 10 << 20]).unwrap();
        encoder.finish().unwrap()
    });
    write!(
        stream,
        "content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
    )?;
    write_chunks(stream, member, members)
}

fn write_chunks(stream: &mut impl Write, chunk: &[u8], chunks: usize) -> io::Result<()> {
    for _ in 0..chunks {
        write!(stream, "{:x}\r\n", chunk.len())?;
        stream.write_all(chunk)?;
        stream.write_all(b"\r\n")?;
    }
    stream.write_all(b"0\r\n\r\n")
}
