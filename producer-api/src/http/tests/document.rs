//! The API's document.

use std::path::Path;

use serde_json::Value;

use crate::http::{api, docs, testing::Api};

fn document() -> String {
    let document = docs::complete(api().into_openapi());
    let mut text = document.to_pretty_json().unwrap();
    text.push('\n');
    text
}

#[test]
fn the_committed_document_is_this_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi.json");
    let document = document();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == document,
        "openapi.json is stale: run UPDATE_OPENAPI=1 cargo nextest run -p sluice-producer-api the_committed_document"
    );
}

#[tokio::test]
async fn it_is_served_as_it_is_committed() {
    let served = Api::start()
        .await
        .ask("GET /api/openapi.json", "")
        .await
        .json();
    assert_eq!(served, serde_json::from_str::<Value>(&document()).unwrap());
    assert_eq!(served["openapi"], "3.1.0");
    assert_eq!(served["info"]["version"], env!("CARGO_PKG_VERSION"));
}

/// Pages for people, and the document itself.
const NOT_IN_IT: [&str; 6] = [
    "/",
    "/docs",
    "/docs/",
    "/docs/{*rest}",
    "/docs/problems",
    "/api/openapi.json",
];

#[tokio::test]
async fn every_route_is_in_it() {
    let api = Api::start().await;
    let shown = format!("{:?}", api.router);
    // Paths are the quoted texts that begin with a slash; the fallback has one of its own.
    let quoted = shown.split('"').skip(1).step_by(2);
    let is_route = |text: &&str| text.starts_with('/') && !text.contains("__private");
    let mut routes: Vec<&str> = quoted.filter(is_route).collect();
    routes.sort_unstable();
    routes.dedup();
    assert!(routes.contains(&"/api/jobs/{id}/cancel"), "{routes:?}");
    let document: Value = serde_json::from_str(&document()).unwrap();
    // What other APIs define is described by their makers.
    routes.retain(|route| !route.starts_with("/v1/"));
    for route in routes.iter().filter(|route| !NOT_IN_IT.contains(route)) {
        assert!(
            document["paths"].get(route).is_some(),
            "{route} is not in the document"
        );
    }
}

#[tokio::test]
async fn everything_in_it_is_a_route_and_says_how_it_refuses() {
    let api = Api::start().await;
    let document: Value = serde_json::from_str(&document()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let line = format!("{} {}", method.to_uppercase(), path.replace("{id}", "x"));
            let answer = api.ask_as("none", &line, "").await;
            assert!(
                answer.status != 404 && answer.status != 405,
                "{line}: {}",
                answer.status
            );
            let open = operation.get("security").is_none();
            assert_eq!(answer.status == 401, !open, "{line}");
            assert!(
                operation["summary"].is_string() && operation["operationId"].is_string(),
                "{line}"
            );
            for status in ["400", "401", "403", "500", "503"] {
                let response = &operation["responses"][status];
                let problem = response["content"]
                    .get("application/problem+json")
                    .is_some();
                assert!(open || problem, "{line} {status}");
            }
        }
    }
}
