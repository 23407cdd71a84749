//! The API's document (OpenAPI 3.1), made from the handlers, and the page to try it.

use axum::{
    Router,
    http::{HeaderValue, header},
};
use tower::ServiceBuilder;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        self, Content, Ref, RefOr, Response,
        path::Operation,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_swagger_ui::{Config, SwaggerUi};

/// Where the document is.
const DOCUMENT: &str = "/api/openapi.json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluice",
        description = "A distributed job queue for LLM prompts: hand in a prompt, get a receipt at \
            once, and have the answer when an account has run it.\n\nEvery refusal is a problem \
            document (RFC 9457) with a stable `code`; /docs/problems explains them all.",
        version = env!("CARGO_PKG_VERSION"),
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "jobs", description = "Prompts to run."),
        (name = "batches", description = "Many prompts in one upload."),
        (name = "schedules", description = "Prompts that recur."),
        (name = "accounts", description = "What runs them."),
        (name = "routing", description = "Which account runs what, and why."),
        (name = "workers", description = "Who runs them."),
        (name = "webhooks", description = "Who is told when something happens, and what came of it."),
        (name = "overview", description = "How all goes."),
        (name = "session", description = "Signing in to the dashboard."),
        (name = "keys", description = "Who may do what."),
        (name = "health", description = "How all is. Needs no key."),
    ),
    components(schemas(sluice_shared::api::Problem, sluice_shared::api::FieldError)),
    modifiers(&Bearer),
)]
struct Base;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some(
            "An API key. Its scope is one of read, submit, operate and admin; each includes those \
             before it."
                .into(),
        );
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}

/// The document without its routes.
pub(super) fn base() -> openapi::OpenApi {
    Base::openapi()
}

/// Adds to each operation what is the same for all.
pub(super) fn complete(mut document: openapi::OpenApi) -> openapi::OpenApi {
    for item in document.paths.paths.values_mut() {
        let methods = [
            &mut item.get,
            &mut item.post,
            &mut item.put,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in methods.into_iter().flatten() {
            add_common_problems(operation);
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response
                    && status.as_str() >= "400"
                    && response.content.is_empty()
                {
                    let problem = RefOr::T(Content::new(Some(Ref::from_schema_name("Problem"))));
                    response
                        .content
                        .insert("application/problem+json".into(), problem);
                }
            }
        }
    }
    document
}

fn add_common_problems(operation: &mut Operation) {
    if operation.security.is_none() {
        return;
    }
    for (status, codes) in [
        (
            "400",
            "`bad_parameter`, `bad_id`, `bad_cursor`, `bad_header`, `duplicate_header`, \
                 `malformed_json`, `bad_body`",
        ),
        ("401", "`unauthorized`"),
        ("403", "`forbidden`"),
        ("429", "`too_many_requests`; try again after `Retry-After`"),
        ("500", "`internal`"),
        (
            "503",
            "`truth_unavailable`, `busy`; try again after `Retry-After`",
        ),
    ] {
        let responses = &mut operation.responses.responses;
        responses
            .entry(status.into())
            .or_insert_with(|| RefOr::T(Response::new(codes)));
    }
}

/// The document, and the page to try it. The page asks nobody else about it.
pub(super) fn page<S: Clone + Send + Sync + 'static>(document: openapi::OpenApi) -> Router<S> {
    let config = Config::default()
        .validator_url("none")
        .try_it_out_enabled(true);
    let page: Router<S> = SwaggerUi::new("/docs")
        .url(DOCUMENT, document)
        .config(config)
        .into();
    page.layer(
        ServiceBuilder::new().map_response(|mut response: axum::response::Response| {
            let headers = response.headers_mut();
            headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
            headers.insert(
                header::CACHE_CONTROL,
                HeaderValue::from_static("private, max-age=600"),
            );
            response
        }),
    )
}
