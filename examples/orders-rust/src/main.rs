//! Orders, in axum: each customer watches their own orders change, live.

use std::env::var;

use aftercommit::event::{EventType, NewEvent, Topic};
use aftercommit::outbox::{self, Bell};
use axum::extract::{FromRef, Json, Path, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum_extra::extract::cookie::{Cookie, Key, SignedCookieJar};
use serde_json::{Value, json};
use sqlx::{PgPool, PgTransaction};

const SCHEMA: &str = "
    create table if not exists stock (item text primary key, amount int not null check (amount >= 0));
    create table if not exists orders (
      id bigint generated always as identity primary key, customer text not null, item text not null,
      status text not null default 'placed', version int not null default 1);
    insert into stock values ('book', 1000), ('violin', 1) on conflict do nothing;";

type App = State<Shared>;
type Answer<T> = Result<T, Refused>;

#[derive(Clone, FromRef)]
struct Shared {
    pool: PgPool,
    bell: Bell,
    session: Key,
}

#[derive(serde::Serialize, sqlx::FromRow)]
struct Order {
    id: i64,
    item: String,
    status: String,
    version: i32,
}

/// An answer that is no success.
struct Refused(StatusCode, String);

impl<E: Into<anyhow::Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        eprintln!("{:#}", error.into());
        Self(StatusCode::INTERNAL_SERVER_ERROR, "the request failed".into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// The customer who is signed in, and the topic that carries their orders, and nobody else's.
fn customer(jar: &SignedCookieJar) -> Answer<(String, Topic)> {
    let cookie = jar.get("customer").ok_or(Refused(StatusCode::UNAUTHORIZED, "sign in first".into()))?;
    Ok((cookie.value().into(), Topic::new(format!("customer:{}", cookie.value()))?))
}

/// Appends the order as it is now: the event commits with the change, or not at all.
async fn append(tx: &mut PgTransaction<'_>, topic: Topic, name: &str, order: &Order) -> Answer<()> {
    outbox::append(tx, &NewEvent::new(topic, EventType::new(name)?, order)?).await?;
    Ok(())
}

/// Believes the name, if it fits into a topic: put your own sign-in here.
async fn sign_in(jar: SignedCookieJar, Json(who): Json<Value>) -> Answer<impl IntoResponse> {
    let name = who["customer"].as_str().unwrap_or_default().to_owned();
    Topic::new(format!("customer:{name}"))
        .map_err(|error| Refused(StatusCode::BAD_REQUEST, error.to_string()))?;
    Ok((jar.add(Cookie::build(("customer", name)).path("/").http_only(true)), Json(who)))
}

/// A token that opens this customer's topic, for a short time.
async fn token(jar: SignedCookieJar) -> Answer<Json<Value>> {
    let (customer, topic) = customer(&jar)?;
    let seconds: u64 = var("TOKEN_SECONDS").map_or(Ok(900), |text| text.parse())?;
    let now = jsonwebtoken::get_current_timestamp();
    let claims = json!({ "sub": customer, "iat": now, "exp": now + seconds, "subscribe": [topic.as_str()] });
    let secret = jsonwebtoken::EncodingKey::from_secret(var("AFTERCOMMIT_JWT_SECRET")?.as_bytes());
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &secret)?;
    let server = var("SSE_URL").unwrap_or("http://127.0.0.1:8081".into());
    Ok(Json(json!({ "token": token, "topic": topic.as_str(), "server": server })))
}

/// The orders, and which events they hold: one transaction reads both from one snapshot.
async fn orders(State(app): App, jar: SignedCookieJar) -> Answer<Json<Value>> {
    let mut tx = app.pool.begin_with("begin isolation level repeatable read read only").await?;
    let select = sqlx::query_as("select * from orders where customer = $1 order by id");
    let orders: Vec<Order> = select.bind(customer(&jar)?.0).fetch_all(&mut *tx).await?;
    Ok(Json(json!({ "orders": orders, "resumeToken": outbox::resume_token(&mut tx).await? })))
}

async fn place(State(app): App, jar: SignedCookieJar, Json(wanted): Json<Value>) -> Answer<Response> {
    let (customer, topic) = customer(&jar)?;
    let item = wanted["item"].as_str();
    let mut tx = app.pool.begin().await?; // rolls back unless it comes to the commit
    outbox::lock_topic(&mut tx, &topic).await?; // orders the customer's events
    let insert = sqlx::query_as("insert into orders (customer, item) values ($1, $2) returning *");
    let order: Order = insert.bind(customer).bind(item).fetch_one(&mut *tx).await?;
    append(&mut tx, topic, "ORDER_PLACED", &order).await?;
    let take = sqlx::query("update stock set amount = amount - 1 where item = $1").bind(item);
    take.execute(&mut *tx).await.map_err(|error| match error.as_database_error() {
        Some(e) if e.is_check_violation() => {
            Refused(StatusCode::CONFLICT, format!("{} is sold out", order.item))
        }
        _ => error.into(),
    })?;
    tx.commit().await?;
    app.bell.ring(); // wakes the relay at once
    Ok((StatusCode::CREATED, Json(order)).into_response())
}

async fn step(State(app): App, jar: SignedCookieJar, path: Path<(i64, String)>) -> Answer<Json<Order>> {
    let Path((id, step)) = path;
    let (before, after, event) = match step.as_str() {
        "pay" => ("placed", "paid", "ORDER_PAID"),
        "ship" => ("paid", "shipped", "ORDER_SHIPPED"),
        _ => return Err(Refused(StatusCode::NOT_FOUND, "an order is paid or shipped".into())),
    };
    let (customer, topic) = customer(&jar)?;
    let mut tx = app.pool.begin().await?;
    outbox::lock_topic(&mut tx, &topic).await?;
    let update = "update orders set status = $1, version = version + 1
                  where id = $2 and customer = $3 and status = $4 returning *";
    let update = sqlx::query_as(update).bind(after).bind(id).bind(customer).bind(before);
    let none = || Refused(StatusCode::CONFLICT, format!("you have no order {id} that is {before}"));
    let order: Order = update.fetch_optional(&mut *tx).await?.ok_or_else(none)?;
    append(&mut tx, topic, event, &order).await?;
    tx.commit().await?;
    app.bell.ring();
    Ok(Json(order))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = PgPool::connect(&var("DATABASE_URL")?).await?;
    sqlx::raw_sql(SCHEMA).execute(&pool).await?;
    let bell = Bell::start((*pool.connect_options()).clone());
    let session = Key::derive_from(var("SESSION_SECRET")?.as_bytes());
    let page = Html(include_str!("../index.html"));
    let routes = axum::Router::<Shared>::new()
        .route("/", get(page))
        .route("/sign-in", post(sign_in))
        .route("/token", post(token))
        .route("/orders", get(orders).post(place))
        .route("/orders/{id}/{step}", post(step))
        .with_state(Shared { pool, bell, session });
    let port = var("PORT").map_or(Ok(8000), |text| text.parse())?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, routes).await?)
}
