//! Tokens that wait for the issuer's list: their number, their waiting time, and the answer of each fetch.

use futures_util::future::{join_all, poll_immediate};
use tokio::time::Instant;

use super::*;

/// Keys without an issuer: the test itself supplies the result of each fetch.
fn fetched_by_hand() -> (Jwks, watch::Sender<State>) {
    let (told, state) = watch::channel(State::default());
    let task = AbortOnDropHandle::new(tokio::spawn(std::future::pending()));
    let places = Semaphore::new(WAITING_MAX);
    (Jwks { state, wanted: Arc::default(), places, _task: task }, told)
}

fn list(kid: &str) -> Result<KeySet, FetchError> {
    let keys = vec![(Some(kid.to_owned()), DecodingKey::from_secret(b"a key"))];
    Ok(KeySet { keys, left_out: 0, fetched: Instant::now() })
}

/// A fetch that begins and ends.
fn fetch(told: &watch::Sender<State>, result: Result<KeySet, FetchError>) {
    told.send_modify(State::begin);
    told.send_modify(|state| state.end(result));
}

async fn ask(jwks: &Jwks, kid: &str) -> Result<(), AuthError> {
    jwks.with_key(Some(kid), |_| Ok(())).await
}

#[tokio::test(start_paused = true)]
async fn a_new_key_gets_in_with_the_next_fetch_and_an_unknown_one_is_refused_by_it() {
    let (jwks, told) = fetched_by_hand();
    fetch(&told, list("old"));
    assert!(ask(&jwks, "old").await.is_ok());
    let next = async { fetch(&told, list("new")) };
    let (new, unknown, ()) = tokio::join!(ask(&jwks, "new"), ask(&jwks, "made up"), next);
    assert!(new.is_ok());
    assert!(matches!(unknown, Err(AuthError::Token(_))));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_was_under_way_when_a_token_came_does_not_refuse_it() {
    let (jwks, told) = fetched_by_hand();
    fetch(&told, list("old"));
    told.send_modify(State::begin);
    let mut new = Box::pin(ask(&jwks, "new"));
    assert!(poll_immediate(&mut new).await.is_none(), "it waits");
    told.send_modify(|state| state.end(list("old")));
    assert!(poll_immediate(&mut new).await.is_none(), "that list may be older than its key");
    fetch(&told, list("new"));
    assert!(new.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn whoever_makes_up_keys_has_so_many_places_and_no_more() {
    let (jwks, told) = fetched_by_hand();
    fetch(&told, list("old"));
    let mut flood = Box::pin(join_all((0..WAITING_MAX).map(|_| ask(&jwks, "new"))));
    assert!(poll_immediate(&mut flood).await.is_none(), "all of them wait");
    let beyond = poll_immediate(ask(&jwks, "new")).await.expect("an answer at once");
    assert!(matches!(beyond, Err(AuthError::KeysUnavailable)), "no verdict");
    assert!(ask(&jwks, "old").await.is_ok(), "a known key needs no place");
    fetch(&told, list("new"));
    assert!(flood.await.iter().all(Result::is_ok));
    assert_eq!(jwks.places.available_permits(), WAITING_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_has_waited_long_enough_is_told_to_try_again() {
    let (jwks, told) = fetched_by_hand();
    fetch(&told, list("old"));
    let begun = Instant::now();
    assert!(matches!(ask(&jwks, "new").await, Err(AuthError::KeysUnavailable)));
    assert_eq!(begun.elapsed(), WAIT_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn keys_outlive_a_fetch_that_fails_and_not_a_list_without_any() {
    let (jwks, told) = fetched_by_hand();
    fetch(&told, list("old"));
    fetch(&told, Err(FetchError::Late));
    assert!(ask(&jwks, "old").await.is_ok());
    let unknown = poll_immediate(ask(&jwks, "new")).await.expect("an answer at once");
    assert!(matches!(unknown, Err(AuthError::KeysUnavailable)), "no verdict while the issuer is away");
    fetch(&told, Err(FetchError::NoKey(0, Algorithm::ES256)));
    let again = async { fetch(&told, Err(FetchError::NoKey(0, Algorithm::ES256))) };
    let (withdrawn, ()) = tokio::join!(ask(&jwks, "old"), again);
    assert!(matches!(withdrawn, Err(AuthError::Token(_))));
    fetch(&told, Err(FetchError::Late));
    assert!(ask(&jwks, "old").await.is_err(), "what was withdrawn does not come back by a failure");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_names_no_key_means_the_only_one_and_is_told_where_there_are_more() {
    let (jwks, told) = fetched_by_hand();
    fetch(&told, list("a"));
    let ask = async || jwks.with_key(None, |_| Ok(())).await;
    assert!(ask().await.is_ok());
    let two = || {
        let keys = ["a", "b"].map(|kid| (Some(kid.to_owned()), DecodingKey::from_secret(b"a key")));
        Ok(KeySet { keys: keys.into(), left_out: 0, fetched: Instant::now() })
    };
    fetch(&told, two());
    let (refused, ()) = tokio::join!(ask(), async { fetch(&told, two()) });
    assert!(refused.expect_err("refused").to_string().contains("it has no 'kid'"));
}
