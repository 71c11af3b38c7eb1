//! The instruments of the load client: they must notice missing, repeated and late events.

use std::time::Duration;

#[path = "../load/engine/account.rs"]
mod account;
#[path = "../load/engine/event_stream.rs"]
mod event_stream;
#[path = "../load/engine/histogram.rs"]
mod histogram;
#[path = "../load/engine/response.rs"]
mod response;

use account::{Account, Balance, Receipt};
use event_stream::{EventStream, Field};
use histogram::Histogram;
use response::{Malformed, Response};

fn balance_of(numbers: &[u32], last: u32) -> Balance {
    let (mut account, mut balance) = (Account::default(), Balance::default());
    for number in numbers {
        account.enter(*number);
    }
    balance.add(&account, last);
    balance
}

#[test]
fn an_account_is_exact_only_if_each_number_came_once_and_in_order() {
    assert!(balance_of(&[1, 2, 3, 4], 4).is_exact());
    let found = |numbers: &[u32]| {
        let balance = balance_of(numbers, 4);
        assert!(!balance.is_exact(), "{numbers:?}");
        (balance.missing, balance.twice, balance.out_of_order)
    };
    assert_eq!(found(&[]), (4, 0, 0));
    assert_eq!(found(&[1, 2, 3]), (1, 0, 0), "the last one");
    assert_eq!(found(&[2, 3, 4]), (1, 0, 0), "the first one");
    assert_eq!(found(&[1, 4]), (2, 0, 0));
    assert_eq!(found(&[1, 2, 2, 3, 4]), (0, 1, 0));
    assert_eq!(found(&[1, 4, 2, 3]), (0, 0, 2));
    assert_eq!(found(&[1, 4, 3, 3]), (1, 1, 1));
}

#[test]
fn an_event_that_comes_late_is_new_and_one_that_comes_again_is_not() {
    let mut account = Account::default();
    let receipts = [1, 5, 3, 3, 5].map(|number| account.enter(number));
    assert_eq!(receipts, [Receipt::New, Receipt::New, Receipt::New, Receipt::Twice, Receipt::Twice]);
    assert_eq!((account.highest(), account.missing(6)), (5, 3));
}

/// A response in chunks that do not end where lines do, with every kind of line and of line break.
const RESPONSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    Transfer-Encoding: chunked\r\n\r\n\
    10\r\nretry: 2500\n\nid:\r\n\
    1c;x=y\r\n 1-7\r\nevent: LOAD\r\ndata: {}\r\r\n\
    D\r\n\r\n:beat\n\nid: \r\n\
    f\r\n1-8\ndata: x:y\n\n\r\n\
    0\r\n\r\n";

/// The same, as the standard reads it.
const LINES: [&str; 10] =
    ["Retry(2.5s)", "End", "Id 1-7", "Event LOAD", "Data {}", "End", "Ignored", "End", "Id 1-8", "Data x:y"];

fn read(pieces: &[&[u8]]) -> (Response, Result<Vec<String>, Malformed>) {
    let (mut response, mut stream, mut lines) = (Response::default(), EventStream::default(), Vec::new());
    for piece in pieces {
        let fed = response.feed(piece, |body| {
            let read = stream.feed(body, |field| lines.push(text_of(field)));
            assert_eq!(read, Ok(()));
        });
        if let Err(malformed) = fed {
            return (response, Err(malformed));
        }
    }
    (response, Ok(lines))
}

fn text_of(field: Field<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    match field {
        Field::Id(id) => format!("Id {}", text(id)),
        Field::Event(name) => format!("Event {}", text(name)),
        Field::Data(data) => format!("Data {}", text(data)),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_response_reads_the_same_wherever_it_is_cut() {
    let expected: Vec<&str> = LINES.into_iter().chain(["End"]).collect();
    let bytes = RESPONSE.as_bytes();
    for cut in 0..=bytes.len() {
        let (before, after) = bytes.split_at(cut);
        let (response, lines) = read(&[before, after]);
        assert_eq!(lines.expect("well formed"), expected, "cut at {cut}");
        assert_eq!((response.status(), response.has_ended()), (Some(200), true));
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(read(&single).1.expect("well formed"), expected, "byte by byte");
}

#[test]
fn a_body_of_a_given_length_ends_there_and_one_without_ends_with_the_connection() {
    let (response, lines) = read(&[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nretry: 1\n"]);
    assert_eq!(lines, Ok(vec!["Retry(1ms)".to_owned()]));
    assert!(response.has_ended() && !response.ends_with_connection());
    let (response, lines) = read(&[b"HTTP/1.1 403 Forbidden\r\n\r\nid: 1-1\n"]);
    assert_eq!((lines, response.status()), (Ok(vec!["Id 1-1".to_owned()]), Some(403)));
    assert!(!response.has_ended() && response.ends_with_connection());
}

#[test]
fn what_is_not_http_is_said_to_be_so() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for (bytes, wrong) in [
        ("SSH-2.0-x\r\n\r\n".to_owned(), "it does not begin with a status"),
        (format!("{chunked}xyz\r\n"), "a chunk's size is no number"),
        (format!("{chunked}2\r\nabc\r\n"), "a chunk is longer than its size"),
        (format!("{chunked}0\r\n\r\nmore"), "bytes follow its end"),
    ] {
        assert_eq!(read(&[bytes.as_bytes()]).1, Err(Malformed(wrong)));
    }
}

#[test]
fn percentiles_are_rounded_up_by_one_in_a_hundred_at_most() {
    let mut histogram = Histogram::default();
    let millis = |n: u64| Duration::from_millis(n);
    (1..=1000).for_each(|n| histogram.record(millis(n)));
    for (part, exact) in [(0.001, 1), (0.5, 500), (0.9, 900), (0.99, 990), (1.0, 1000)] {
        let (exact, found) = (millis(exact), histogram.at(part));
        assert!(found >= exact && found <= exact.mul_f64(1.01), "{part}: {found:?}");
    }
    assert_eq!((histogram.count(), histogram.max()), (1000, millis(1000)));
    assert_eq!(Histogram::default().at(0.99), Duration::ZERO);
}
