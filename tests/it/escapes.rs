//! Text of other people cannot control an operator's terminal, and cannot hide on the page.

use serde_json::Value;

use crate::commands::{commit, stderr, stdout};
use crate::console::{signed_in, system};
use crate::harness::{Settings, System, TestResult, cli, eventually};

/// Control sequences: a title, a cleared screen in C0 and C1 form, bidirectional overrides, invisible
/// characters, and returns to the start of the line.
const NASTY: &str = "x\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}drow\u{2066}\u{200b}\r\u{8}\u{7f}y";

fn is_inert(text: &str) -> bool {
    let is_nasty = |c: char| {
        (c.is_control() && c != '\n')
            || ('\u{202a}'..='\u{202e}').contains(&c)
            || ('\u{2066}'..='\u{2069}').contains(&c)
            || c == '\u{200b}'
    };
    !text.contains(is_nasty)
}

async fn assert_inert(settings: &Settings, arguments: &[&str]) -> String {
    let output = cli(settings, arguments).await;
    for said in [stdout(&output), stderr(&output)] {
        assert!(is_inert(&said), "{arguments:?}: {said:?}");
    }
    stdout(&output) + &stderr(&output)
}

/// Writes events, reasons and an operator's name that contain all of them.
async fn written(system: &System) -> TestResult {
    let mut connection = system.database.connect().await;
    sqlx::query("select outbox.append('t', 'T', to_json($1::text), jsonb_build_object('h', $1::text))")
        .bind(NASTY)
        .execute(&mut connection)
        .await?;
    let pause = ["pause", "--reason", NASTY];
    let paused = cli(&system.settings().clone().set("USER", NASTY), &pause).await;
    assert_eq!(paused.status.code(), Some(0), "{paused:?}");
    Ok(())
}

#[tokio::test]
async fn no_command_prints_what_steers_a_terminal_and_json_is_exact() -> TestResult {
    let system = System::new().await;
    let relay = system.start("relay").await;
    let topic = system.redis.topic("held");
    crate::console::block(&system, &topic).await;
    commit(&system, &topic, "A", 1).await;
    eventually("it is parked", async || {
        let listed = stdout(&cli(system.settings(), &["parked", "list"]).await);
        listed.contains(topic.as_str()).then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, 0);
    written(&system).await?;
    let mut connection = system.database.connect().await;
    for change in [
        "update outbox.parked set reason = $1",
        "insert into outbox.heartbeat (relay, process, role, published, rate, error, rotation_blocked, listen)
         select relay, $1, 'leading', 0, 0, $1, $1, $1 from outbox.position",
    ] {
        sqlx::query(change).bind(NASTY).execute(&mut connection).await?;
    }
    let settings = system.settings();
    let shown = assert_inert(settings, &["events", "show", "2"]).await;
    assert!(shown.contains(r"\u{202e}drow\u{2066}\u{200b}"), "{shown}");
    for screen in ["status", "relay list", "parked list", "audit", "events list", "doctor", "events show 1"] {
        assert_inert(settings, &screen.split(' ').collect::<Vec<_>>()).await;
    }
    for refused in [["parked", "release", NASTY], ["resume", NASTY, "--reason=x"], ["events", "show", NASTY]]
    {
        assert_inert(settings, &refused).await;
    }

    let shown = cli(settings, &["events", "show", "2", "--output", "json"]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout)?;
    assert_eq!((&shown[0]["payload"], &shown[0]["headers"]["h"]), (&NASTY.into(), &NASTY.into()));
    let audit = cli(settings, &["audit", "--output", "json"]).await;
    let audit: Value = serde_json::from_slice(&audit.stdout)?;
    assert_eq!(audit[0]["reason"], NASTY);
    Ok(())
}

#[tokio::test]
async fn the_page_shows_it_as_text_that_neither_hides_nor_runs_backwards() -> TestResult {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    written(&system).await?;
    for part in ["#audit", "#verdict", "#relays"] {
        let text = browser.wait_for_text(part, r"\u{202e}drow").await;
        assert!(is_inert(&text.replace('\t', " ")), "{part}: {text:?}");
    }
    assert_eq!(browser.console_errors().await, [""; 0]);
    Ok(())
}
