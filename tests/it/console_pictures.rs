//! Pictures of the operator's page, for people to look at.

use redis::AsyncCommands;
use secrecy::ExposeSecret;

use crate::harness::keys;
use aftercommit::event::Topic;

use crate::commands::commit;
use crate::console::{TOKEN, agrees, signed_in};
use crate::harness::{Browser, System, TestResult, redis_settings_of, start_redis};

/// Takes pictures of the page as it is now: on a laptop and on a phone, in light and dark.
async fn pictures_of(browser: &Browser, directory: &std::path::Path, name: &str) {
    for (screen, width, height, is_phone) in [("laptop", 1280, 800, false), ("phone", 390, 844, true)] {
        for scheme in ["light", "dark"] {
            browser.looks_like(width, height, is_phone, scheme).await;
            tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
            browser.picture(&directory.join(format!("{name}-{screen}-{scheme}.png"))).await;
        }
    }
}

#[tokio::test]
#[ignore = "takes pictures of the page in its states, for people to look at"]
async fn pictures() -> TestResult {
    let directory = std::env::temp_dir().join("aftercommit-console");
    std::fs::create_dir_all(&directory)?;
    let redis = start_redis(Vec::new(), None).await;
    let system = System::with_redis(redis.url().expose_secret()).await.set("AFTERCOMMIT_RELAY_NAME", "main");
    let mut system = system.set("AFTERCOMMIT_OPERATOR_TOKEN", TOKEN);
    let sse = system.start("sse").await;
    system.set_again("AFTERCOMMIT_SSE_LISTEN", &sse.address);
    let (relay, _standby) = (system.start("relay").await, system.start("relay").await);
    let topic = |name: &str| Topic::new(name).expect("a topic");
    let shoot = async |browser: &Browser, name: &str| pictures_of(browser, &directory, name).await;

    let browser = Browser::start().await;
    browser.goes_to(&relay.url("/")).await;
    shoot(&browser, "sign-in").await;
    drop(browser);
    let browser = signed_in(&relay).await;
    for n in 0..120_u32 {
        let wave = (f64::from(n) / 9.0).sin() + 1.3;
        commit(&system, &topic("order:42"), "ORDER_PAID", (wave * 120.0) as u64).await;
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    }
    shoot(&browser, "delivering").await;
    let mut connection = redis_settings_of(redis.url().expose_secret()).connect().await?;
    for name in ["order:1042", "customer:7:notifications"] {
        let _: () = connection.set(keys::history(&topic(name)), "in the way").await?;
        commit(&system, &topic(name), "ORDER_PAID", 3).await;
    }
    browser.wait_for_text("#parked", "WRONGTYPE").await;
    browser.click("#replay-fold summary").await;
    browser.write("#replay-topic", "order:42").await;
    browser.click("#replay-look").await;
    browser.wait_for_text("#replay-found", "would be delivered").await;
    shoot(&browser, "parked").await;
    browser.click("#replay-run").await;
    agrees(&browser, "The mail service lost its queue").await;
    browser.click("[data-topic='order:1042'] button:nth-child(2)").await;
    shoot(&browser, "question").await;
    browser.click("#ask-no").await;
    browser.click("#verdict-button").await;
    agrees(&browser, "Redis is being moved to the new machines").await;
    for _ in 0..15 {
        commit(&system, &topic("order:42"), "ORDER_PAID", 200).await;
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    }
    shoot(&browser, "paused").await;
    relay.kill().await;
    browser.wait_for_text("#link", "Connection lost").await;
    shoot(&browser, "lost").await;
    println!("see {}", directory.display());
    Ok(())
}
