//! The topics that a ticket covers, and the largest ticket.

use super::*;
use crate::auth::Algorithm;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn tickets() -> Tickets {
    let settings = Settings {
        secret: SECRET.to_owned().into(),
        public_key_file: String::new(),
        jwks_url: String::new(),
        jwks_refresh_seconds: 300,
        jwks_cooldown_seconds: 10,
        algorithm: Algorithm::HS256,
        issuer: String::new(),
        audience: String::new(),
        leeway_seconds: 0,
        cookie: String::new(),
        ticket_seconds: 300,
    };
    Tickets::new(&settings).expect("settings").expect("a secret")
}

fn user(id: &str, subscribe: &[&str]) -> User {
    let subscribe = subscribe.iter().map(ToString::to_string).collect();
    let expires_at = Utc::now() + Duration::from_secs(3600);
    let token = TokenMark::of("4711").expect("a mark");
    let credential = Credential { issued_at: Some(Utc::now().timestamp()), token: Some(token) };
    User { id: UserId::new(id).expect("a user"), expires_at, subscribe, credential }
}

#[test]
fn a_ticket_is_good_for_its_topics_and_remembers_which_of_them_the_token_allows() {
    let tickets = tickets();
    let (ticket, _) =
        tickets.issue(&user("auth0|64b1f", &["orders:*"]), &["orders:7", "mine"]).expect("a ticket");
    let (user, topics) = tickets.verify(&ticket).expect("valid");
    assert_eq!(user.id.as_str(), "auth0|64b1f");
    assert!(topics.covers("orders:7") && topics.may_subscribe("orders:7"));
    assert!(topics.covers("mine") && !topics.may_subscribe("mine"));
    assert_eq!(user.credential.token, TokenMark::of("4711").ok(), "it is revoked with its token");
    assert!(user.credential.issued_at.is_some());
    assert!(!topics.covers("orders:8") && !topics.may_subscribe("orders:8"));
}

#[test]
fn the_longest_ticket_is_no_longer_than_what_requests_make_room_for() {
    let tickets = tickets();
    let topics: Vec<String> = (0..TICKET_TOPICS_MAX).map(|n| format!("{n:0200}")).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut longest = 0;
    for c in ["\u{10ffff}", "\"", "\\", "x"] {
        for subscribe in [&["*"][..], &[]] {
            let user = user(&c.repeat(UserId::CHARS_MAX), subscribe);
            let (ticket, _) = tickets.issue(&user, &topics).expect("a ticket");
            tickets.verify(&ticket).expect("valid");
            longest = longest.max(ticket.len());
        }
    }
    assert!(longest <= TICKET_BYTES_MAX, "{longest} of {TICKET_BYTES_MAX}");
    assert!(longest > TICKET_BYTES_MAX * 9 / 10, "the limit is no guess: {longest} of {TICKET_BYTES_MAX}");
}
