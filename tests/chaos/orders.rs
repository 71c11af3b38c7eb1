//! The sixth number: operators' requests that were applied to other rows than they named.

use aftercommit::event::StreamId;
use sqlx::PgConnection;

use crate::world::World;

/// The number of discarded rows that no operator named, plus the number of copies that replays made without
/// a request or failed to make.
pub(crate) async fn misdirected(world: &World) -> usize {
    let mut connection = world.postgres().await;
    discarded_unasked(world, &mut connection).await + wrongly_copied(&mut connection).await
}

async fn discarded_unasked(world: &World, connection: &mut PgConnection) -> usize {
    let discarded: Vec<(String, i64, i64)> = sqlx::query_as(
        "select topic, epoch, seq from outbox.parked where relay = $1 and settled_as = 'discarded'",
    )
    .bind(world.system.redis.relay_name())
    .fetch_all(connection)
    .await
    .expect("what is parked");
    let requests = world.ledger.requests();
    let is_named = |topic: &str, id: StreamId| {
        requests.iter().any(|request| {
            world.channels[request.channel].topic.as_str() == topic && request.named.contains(&id)
        })
    };
    let ids = discarded
        .iter()
        .map(|(topic, epoch, seq)| (topic, StreamId::new(epoch.cast_unsigned(), seq.cast_unsigned())));
    ids.filter(|(topic, id)| !is_named(topic, *id))
        .inspect(|(topic, id)| eprintln!("nobody has asked to discard {id} of {topic}"))
        .count()
}

/// Each replay copies each row that it names once, and no other.
async fn wrongly_copied(connection: &mut PgConnection) -> usize {
    let replays: Vec<(i64, i64, i64, i64)> = sqlx::query_as(
        "select r.id, r.selected, made.right_ones, made.all_of_them
         from outbox.replay r
         cross join lateral (
           select count(*) as all_of_them,
                  count(distinct (c.headers->'replay'->>'row'))
                    filter (where c.topic = r.selection->>'topic') as right_ones
           from outbox.event c where (c.headers->'replay'->>'replay')::bigint = r.id
         ) made
         where r.selected <> made.right_ones or made.all_of_them <> made.right_ones",
    )
    .fetch_all(connection)
    .await
    .expect("replays");
    let wrong = replays.iter().map(|(id, selected, right, all)| {
        eprintln!(
            "replay {id} was asked for {selected} events and has made {all} copies, {right} of them right"
        );
        (selected - right).unsigned_abs() + (all - right).unsigned_abs()
    });
    usize::try_from(wrong.sum::<u64>()).expect("a count")
}
