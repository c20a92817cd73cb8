//! `DirectExporter` held to the table, through every HTTP client.
//!
//! For each row: as many attempts as it says, seen from both ends; over within its bounds; counted as it says, with nothing
//! left in flight; an error of the right kind, or none; one warning, or none; nothing sent to where a redirect leads; no
//! more than the limit read of an answer; no secret in the error or in any warning. Then the collector is well, and the next
//! export on the same exporter arrives.

use opentelemetry_otlp_direct::{DirectExporter, FailureReason, Signal};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use std::process::Command;

use crate::client::Client;
use crate::run::{SECRET, context, each, item_names, last, timed, wait_until};
use crate::server::Server;
use crate::signals::export;
use crate::table::{ITEMS, Row, table};
use crate::tls;

/// Scenario: each row, through the exporter's own client.
/// Guarantees: see the module.
#[test]
fn every_fault_is_met_as_specified_by_the_default_client() {
    every_fault_is_met_by(Client::Default);
}

/// Scenario: each row that does not send a gigabyte, for log records and for metrics, through the exporter's own client.
/// Guarantees: the same, in the words of the signal.
#[test]
fn every_fault_is_met_as_specified_for_every_signal() {
    let mut rows = table();
    rows.retain(|row| Client::Default.can(row) && !row.is_large());
    let of = |signal| rows.iter().map(move |row| row.clone().of(signal));
    let rows = of(Signal::Logs).chain(of(Signal::Metrics)).collect();
    each(rows, |row| check(row, Client::Default));
}

/// Scenario: each row, those of https among them, through a `reqwest` client of the user's.
/// Guarantees: the same.
#[test]
fn every_fault_is_met_as_specified_by_a_reqwest_client() {
    every_fault_is_met_by(Client::Reqwest);
}

/// Scenario: each row of http, through a `hyper` client of the user's.
/// Guarantees: the same.
#[test]
fn every_fault_is_met_as_specified_by_a_hyper_client() {
    every_fault_is_met_by(Client::Hyper);
}

/// Scenario: each row that does not wait, through a blocking `reqwest` client of the user's.
/// Guarantees: the same.
#[test]
fn every_fault_is_met_as_specified_by_a_blocking_reqwest_client() {
    every_fault_is_met_by(Client::ReqwestBlocking);
}

/// Scenario: each row of https, through the exporter's own client, in a process whose system trusts the authority that
/// signs the good certificate. Which one that is can only be said to a process when it starts.
/// Guarantees: the same; so feature `tls` speaks to those who are trusted, and to nobody else.
#[test]
#[cfg_attr(
    any(
        not(target_os = "linux"),
        all(feature = "hyper", not(feature = "reqwest"))
    ),
    ignore = "needs a client that does https, and a system that can be told whom to trust"
)]
fn every_fault_of_https_is_met_as_specified_by_the_default_client() {
    /// Set in the process that trusts the authority of these tests, to where it says so.
    const AUTHORITY: &str = "FAULTS_AUTHORITY";
    const NAME: &str =
        "over_the_exporter::every_fault_of_https_is_met_as_specified_by_the_default_client";
    if let Some(file) = std::env::var_os(AUTHORITY) {
        std::fs::write(file, tls::root_pem()).unwrap();
        let mut rows = table();
        rows.retain(Row::is_of_https);
        return each(rows, |row| check(row, Client::Default));
    }
    let file = format!(
        "{}/authority-{}.pem",
        env!("CARGO_TARGET_TMPDIR"),
        std::process::id()
    );
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(AUTHORITY, &file)
        .env("SSL_CERT_FILE", &file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    std::fs::remove_file(file).unwrap();
}

fn every_fault_is_met_by(client: Client) {
    let mut rows = table();
    rows.retain(|row| client.can(row));
    each(rows, move |row| check(row, client));
}

fn check(row: &Row, client: Client) {
    let server = Server::start(&row.faults, row.is_of_https());
    let exporter = client.exporter(row, &server);
    let _entered = client.runtime().map(|runtime| runtime.enter());
    let names = item_names(row);

    let (result, took) = timed(|| export(row.signal, &exporter, context(1), &names));
    row.check_time(took);
    row.check_result(result);
    row.check_account(&exporter.stats_of(row.signal));
    row.check_server(&server);
    row.check_logs(&server.endpoint());

    server.heal();
    let refused = match row.opens_a_circuit() {
        true => check_circuit(row.signal, &exporter, &server, &names),
        false => 0,
    };
    let before = exporter.stats_of(row.signal);
    export(row.signal, &exporter, context(1), &names).unwrap();
    let request = last(&server);
    assert_eq!(request.names, names);
    assert_eq!(request.authorization, Some(format!("Bearer {SECRET}-1")));
    let after = exporter.stats_of(row.signal);
    assert_eq!(after.exported(), before.exported() + ITEMS);
    assert_eq!(
        (after.attempts(), after.in_flight()),
        (before.attempts() + 1, 0)
    );
    assert_eq!(after.failed(FailureReason::CircuitOpen), refused);
}

/// After a 401 or 403: nothing is sent under the same token for a while, and another one is not held up. Returns how many
/// items were not sent.
fn check_circuit(
    signal: Signal,
    exporter: &DirectExporter,
    server: &Server,
    names: &[String],
) -> u64 {
    let arrived = server.met();
    let error = export(signal, exporter, context(1), names)
        .unwrap_err()
        .to_string();
    assert!(error.contains("not sent"), "{error}");
    assert_eq!(server.met(), arrived);
    export(signal, exporter, context(2), names).unwrap();
    let mut refused = ITEMS;
    wait_until("the end of the cool-down", || {
        let result = export(signal, exporter, context(1), names);
        refused += if result.is_err() { ITEMS } else { 0 };
        result.is_ok()
    });
    refused
}

impl Row {
    #[track_caller]
    fn check_result(&self, result: OTelSdkResult) {
        let Some(reason) = self.reason() else {
            return result.unwrap();
        };
        let error = result.unwrap_err();
        match (&error, reason) {
            (OTelSdkError::Timeout(after), FailureReason::Timeout) => {
                assert_eq!(*after, self.timeout());
            }
            (OTelSdkError::InternalFailure(text), _) => {
                assert!(text.contains(&self.said()), "{text}");
                assert!(!text.contains(SECRET), "{text}");
            }
            (error, _) => panic!("of the wrong kind: {error:?}"),
        }
    }
}
