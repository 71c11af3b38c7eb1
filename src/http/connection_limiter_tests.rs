//! Which connections get a place, and which give way.

use super::*;

const FLOOD: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)));

struct Connected {
    place: Arc<ConnectionPermit>,
    end: CancellationToken,
}

fn places(connections: usize, of_a_peer: usize) -> ConnectionLimiter {
    ConnectionLimiter::new(Room { connections, reserve: 2, of_a_peer }, Metrics::default())
}

fn connect(places: &ConnectionLimiter, peer: Option<IpAddr>) -> Option<Connected> {
    let end = CancellationToken::new();
    let place = places.take(peer, end.clone(), Instant::now())?;
    Some(Connected { place: Arc::new(place), end })
}

#[test]
fn the_connection_that_has_been_idle_for_longest_gives_way() {
    let places = places(3, 100);
    let open: Vec<Connected> = (0..3).map(|_| connect(&places, None).expect("a place")).collect();
    // The first connection has had a request since.
    drop(open[0].place.ask());
    let later = connect(&places, None).expect("a place");
    assert!(!later.place.is_in_reserve);
    assert!(open[1].end.is_cancelled() && !open[0].end.is_cancelled() && !open[2].end.is_cancelled());
    // A connection that gave way has left its place already. Its end must not free another one.
    drop(open);
    assert_eq!(places.state().open.len(), 1);
}

#[test]
fn who_is_vouched_for_never_gives_way_and_health_has_places_of_its_own() {
    let places = places(2, 100);
    let open: Vec<Connected> = (0..2).map(|_| connect(&places, None).expect("a place")).collect();
    let asking: Vec<ActiveRequest> = open.iter().map(|one| one.place.ask()).collect();
    open.iter().for_each(|one| one.place.vouch());
    let reserve: Vec<Connected> = (0..3).map(|_| connect(&places, None).expect("a place")).collect();
    assert!(reserve.iter().all(|one| one.place.is_in_reserve));
    assert!(reserve[0].end.is_cancelled(), "of these too the one that has been idle for longest gives way");
    assert!(open.iter().all(|one| !one.end.is_cancelled()));
    drop(asking);
    assert!(!connect(&places, None).expect("a place").place.is_in_reserve, "a request is over");
}

#[test]
fn a_request_without_a_valid_token_gives_way_after_a_while_and_not_at_once() {
    let places = places(1, 100);
    let one = connect(&places, None).expect("a place");
    let _asking = one.place.ask();
    assert!(connect(&places, None).expect("a place").place.is_in_reserve);
    let later = Instant::now() + REQUEST_AT_LEAST;
    let place = places.take(None, CancellationToken::new(), later).expect("a place");
    assert!(!place.is_in_reserve && one.end.is_cancelled());
}

#[test]
fn where_nobody_gives_way_a_connection_is_refused() {
    let places = places(1, 100);
    let open: Vec<Connected> = (0..3).map(|_| connect(&places, None).expect("a place")).collect();
    let kept: Vec<Connected> = open.into_iter().filter(|one| !one.end.is_cancelled()).collect();
    let kept: Vec<(Connected, ActiveRequest)> = kept
        .into_iter()
        .map(|one| {
            let asking = one.place.ask();
            (one, asking)
        })
        .collect();
    let mut more = Vec::new();
    while let Some(one) = connect(&places, None) {
        let asking = one.place.ask();
        more.push((one, asking));
        assert!(more.len() < 9, "there is an end");
    }
    assert_eq!(kept.len() + more.len(), 3, "one for everybody, two for health");
}

#[test]
fn a_peer_has_so_many_places_without_a_valid_token_and_others_have_theirs() {
    let places = places(100, 2);
    let open: Vec<Connected> = (0..2).map(|_| connect(&places, FLOOD).expect("a place")).collect();
    let third = connect(&places, FLOOD).expect("its own idle one gives way");
    assert!(open[0].end.is_cancelled() && !open[1].end.is_cancelled());
    let asking = [open[1].place.ask(), third.place.ask()];
    assert!(connect(&places, FLOOD).is_none());
    assert!(connect(&places, None).is_some(), "who is not counted");
    third.place.vouch();
    assert!(connect(&places, FLOOD).is_some(), "one with a valid token does not count");
    drop((open, third, asking));
    let state = places.state();
    assert_eq!((state.open.len(), state.waiting.len(), state.of_peer.len()), (0, 0, 0));
}

#[test]
fn a_peer_beyond_its_places_takes_none_of_anybody_elses() {
    let places = places(100, 2);
    let others = Some(IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 2)));
    let idle_for_longest = connect(&places, others).expect("a place");
    let open: Vec<Connected> = (0..2).map(|_| connect(&places, FLOOD).expect("a place")).collect();
    let _third = connect(&places, FLOOD).expect("its own idle one gives way");
    assert!(open[0].end.is_cancelled() && !idle_for_longest.end.is_cancelled());
}
