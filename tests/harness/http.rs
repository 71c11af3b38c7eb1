//! The HTTP client of the tests. It trusts no authority: a client that does reads the machine's certificates
//! when it is made, which takes a third of a second in a debug build, for servers that speak plain HTTP.

/// A client, to be set up further.
pub(crate) fn http_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().tls_certs_only([])
}

/// A client with connections of its own.
pub(crate) fn http() -> reqwest::Client {
    http_builder().build().expect("a client")
}

/// Sends one GET.
pub(crate) async fn http_get(url: impl reqwest::IntoUrl) -> reqwest::Result<reqwest::Response> {
    http().get(url).send().await
}
