//! Traces: one request's trace id, from the api over the log and Redis to the SSE server, as a collector
//! receives it. And what logs never say.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use redis::AsyncCommands;
use sqlx::Row;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::harness::keys;

use crate::commands::assert_fails;
use crate::harness::{Client, Process, Session, System, TestResult, cli, eventually, str_of};

/// A collector that keeps what it receives: (service, span).
#[derive(Clone)]
struct Collector {
    address: String,
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

impl Collector {
    async fn start() -> TestResult<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let collector = Self { address, spans: Arc::default() };
        let router = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(collector)
    }

    fn spans(&self, service: &str, name: &str) -> TestResult<Vec<Span>> {
        let spans = self.spans.lock()?;
        Ok(spans
            .iter()
            .filter(|(of, span)| of == service && span.name == name)
            .map(|(_, s)| s.clone())
            .collect())
    }
}

async fn take(State(collector): State<Collector>, body: Bytes) -> Bytes {
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    let mut kept = collector.spans.lock().expect("a lock");
    for sent in request.resource_spans {
        let service = text_of(&sent.resource.expect("a resource").attributes, "service.name");
        let spans = sent.scope_spans.into_iter().flat_map(|scope| scope.spans);
        kept.extend(spans.map(|span| (service.clone(), span)));
    }
    Bytes::from(ExportTraceServiceResponse::default().encode_to_vec())
}

fn text_of(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    let value = found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref());
    match value.unwrap_or_else(|| panic!("no {key}: {attributes:?}")) {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Completes a photo as a part of this trace.
async fn complete(
    system: &System,
    api: &Process,
    session: &Session,
    photo: usize,
    traceparent: &str,
) -> TestResult {
    let photo = session.photos[photo];
    let url = api.url(&format!("/api/upload/sessions/{}/photos/{photo}/complete", session.id));
    let request = system.http().post(url).bearer_auth(&session.token).header("traceparent", traceparent);
    assert_eq!(request.send().await?.status(), 200);
    Ok(())
}

async fn headers_of_rows(system: &System) -> TestResult<Vec<Option<serde_json::Value>>> {
    let rows = sqlx::query("select headers from outbox.event order by id")
        .fetch_all(&mut system.database.connect().await)
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[tokio::test]
async fn a_request_its_publishing_and_its_delivery_carry_one_trace_id() -> TestResult {
    let collector = Collector::start().await?;
    let system = System::new()
        .await
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{}", collector.address))
        .set("AFTERCOMMIT_TELEMETRY_SAMPLE_RATIO", "0");
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let relay = system.start("relay").await;
    let session = system.session(&api, Uuid::new_v4(), 3).await;
    let client = session.listen(&sse).await;
    complete(&system, &api, &session, 0, &format!("00-{TRACE}-{CALLER}-01")).await?;
    complete(&system, &api, &session, 1, &format!("00-{}-{CALLER}-00", "a".repeat(32))).await?;
    let events = client.wait_for_events(2).await;
    drop(client);
    // What is left is sent when a process ends.
    for process in [api, relay, sse] {
        assert_eq!(process.terminate().await, 0);
    }

    let route = "POST /api/upload/sessions/{session_id}/photos/{photo_id}/complete";
    let requests = collector.spans("aftercommit-api", route)?;
    assert_eq!(requests.len(), 1, "the one that the caller records: {requests:?}");
    let request = &requests[0];
    assert_eq!((hex(&request.trace_id), hex(&request.parent_span_id)), (TRACE.into(), CALLER.into()));
    assert_eq!(request.kind(), SpanKind::Server);
    assert_eq!(text_of(&request.attributes, "http.response.status_code"), "200");

    let published = collector.spans("aftercommit-relay", "publish")?;
    let delivered = collector.spans("aftercommit-sse", "deliver")?;
    for (spans, kind) in [(&published, SpanKind::Producer), (&delivered, SpanKind::Consumer)] {
        assert_eq!(spans.len(), 1, "{spans:?}");
        let span = &spans[0];
        let links: Vec<_> = span.links.iter().map(|l| (hex(&l.trace_id), hex(&l.span_id))).collect();
        assert_eq!(links, [(TRACE.to_owned(), hex(&request.span_id))]);
        assert_eq!((span.kind(), span.parent_span_id.len()), (kind, 0));
        assert_eq!(text_of(&span.attributes, "messaging.system"), "redis");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    assert_eq!(text_of(&published[0].attributes, "messaging.operation.name"), "publish");
    assert!(["1", "2"].contains(&&*text_of(&published[0].attributes, "messaging.batch.message_count")));
    assert_eq!(text_of(&delivered[0].attributes, "messaging.destination.name"), session.topic());
    // The trace goes along beside the payload, and neither the client nor the unrecorded trace gets any of
    // it.
    assert!(events.iter().all(|event| !event.data.contains(TRACE)));
    let headers = headers_of_rows(&system).await?;
    let carried = str_of(&headers[0].as_ref().ok_or("no headers")?["traceparent"]);
    assert_eq!(carried, format!("00-{TRACE}-{}-01", hex(&request.span_id)));
    assert_eq!(headers[1], None);
    Ok(())
}

#[tokio::test]
async fn a_traceparent_of_another_language_is_linked_and_one_that_is_none_is_left_out() -> TestResult {
    let collector = Collector::start().await?;
    let system = System::new()
        .await
        .set("AFTERCOMMIT_TELEMETRY_OTLP_ENDPOINT", &format!("http://{}/", collector.address));
    let relay = system.start("relay").await;
    let topic = system.redis.topic("traced");
    let mut connection = system.database.connect().await;
    for traceparent in [format!("00-{TRACE}-{CALLER}-01"), "nonsense".to_owned()] {
        sqlx::query("select outbox.append($1, 'T', '1', jsonb_build_object('traceparent', $2::text))")
            .bind(topic.as_str())
            .bind(traceparent)
            .execute(&mut connection)
            .await?;
    }
    let mut redis = system.redis.connect().await;
    eventually("both are published", async || {
        let length: u64 = redis.xlen(keys::history(&topic)).await.expect("a length");
        (length == 2).then_some(())
    })
    .await;
    assert_eq!(relay.terminate().await, 0);
    let published = collector.spans("aftercommit-relay", "publish")?;
    let links: Vec<String> =
        published.iter().flat_map(|span| &span.links).map(|link| hex(&link.trace_id)).collect();
    assert_eq!(links, [TRACE]);
    Ok(())
}

#[tokio::test]
async fn without_a_collector_rows_carry_nothing_and_a_collector_that_is_away_holds_nothing_up() -> TestResult
{
    let away = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    for endpoint in [String::new(), format!("http://{away}")] {
        let system = System::new().await.set("AFTERCOMMIT_TELEMETRY_OTLP_ENDPOINT", &endpoint);
        let (api, sse) = (system.start("api").await, system.start("sse").await);
        let relay = system.start("relay").await;
        let session = system.session(&api, Uuid::new_v4(), 2).await;
        let client = session.listen(&sse).await;
        complete(&system, &api, &session, 0, &format!("00-{TRACE}-{CALLER}-01")).await?;
        client.wait_for_events(1).await;
        drop(client);
        for process in [api, relay, sse] {
            assert_eq!(process.terminate().await, 0);
        }
        assert_eq!(headers_of_rows(&system).await?[0].is_some(), !endpoint.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_setting_stops_a_process_with_a_sentence_and_no_command_of_an_operator() {
    for (name, value, said) in [
        ("AFTERCOMMIT_TELEMETRY_SAMPLE_RATIO", "2", "has to be from 0 to 1"),
        ("AFTERCOMMIT_TELEMETRY_OTLP_ENDPOINT", "nonsense", "name a collector such as"),
    ] {
        let system =
            System::new().await.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9").set(name, value);
        assert_fails(system.settings(), &["relay"], 1, said).await;
        assert_eq!(cli(system.settings(), &["status"]).await.status.code(), Some(0));
    }
}

#[tokio::test]
async fn logs_name_events_and_never_what_is_in_them_nor_any_secret() -> TestResult {
    const MARK: &str = "a-payload-that-nobody-may-read";
    const PASSWORD: &str = "a-password-that-nobody-may-read";
    let mut system = System::new().await.set("AFTERCOMMIT_LOG_LEVEL", "trace");
    let database = system.database.url().to_owned();
    let user = format!("u{}", Uuid::new_v4().simple());
    let mut connection = system.database.connect().await;
    let made = format!("create role {user} superuser login password '{PASSWORD}'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(made)).execute(&mut connection).await?;
    let (_, host) = database.rsplit_once('@').unwrap_or_else(|| database.split_once("://").expect("a url"));
    system.set_again("DATABASE_URL", &format!("postgres://{user}:{PASSWORD}@{host}"));

    let (sse, relay) = (system.start("sse").await, system.start("relay").await);
    let topic = system.redis.topic("secret");
    let token = system.token_with(Uuid::new_v4(), std::time::Duration::from_secs(600), &[topic.as_str()]);
    let client = Client::open(&sse.url(&format!("/streams/{topic}")), &token).await;
    let mut redis = system.redis.connect().await;
    // Two that no relay wrote: the SSE server passes the one on and logs a warning about the other. In this
    // order, because a message right after one on the live channel counts as its twin.
    for channel in [keys::public(&topic).to_owned(), keys::live(&topic)] {
        let _: u64 = redis.publish(channel, format!("\"{MARK}\"")).await?;
    }
    client.wait_for_events(1).await;
    let append = "select outbox.append($1, 'T', to_json($2::text))";
    let event: Uuid =
        sqlx::query_scalar(append).bind(topic.as_str()).bind(MARK).fetch_one(&mut connection).await?;
    client.wait_for_events(2).await;
    // And one that Redis refuses, so that it is parked.
    let _: () = redis.del(keys::history(&topic)).await?;
    let _: () = redis.set(keys::history(&topic), "in the way").await?;
    sqlx::query(append).bind(topic.as_str()).bind(MARK).execute(&mut connection).await?;
    relay.wait_for_log("\"parked\"").await;

    let secret = system.settings().get("AFTERCOMMIT_JWT_SECRET");
    for process in [&sse, &relay] {
        let log = process.log();
        assert!(log.contains("\"TRACE\""), "logs everything: {log}");
        assert!(log.contains(&event.to_string()), "the event is named: {log}");
        for hidden in [MARK, PASSWORD, &token, &secret] {
            let line = log.lines().find(|line| line.contains(hidden));
            assert_eq!(line, None, "{hidden}");
        }
    }
    sse.wait_for_log("not an envelope").await;
    drop(client);
    assert_eq!((relay.terminate().await, sse.terminate().await), (0, 0));
    let dropped = format!("drop role {user}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(dropped)).execute(&mut connection).await?;
    Ok(())
}
