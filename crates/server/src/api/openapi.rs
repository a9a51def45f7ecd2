//! The API's own description, at `/openapi.json`.

use axum::Json;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, OpenApi as Description, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::{databases, interactive, service, transactions};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Unanimity",
        description = "A transaction coordinator: all parts of a business transaction happen, or \
            none.",
        license(name = "MIT OR Apache-2.0")
    ),
    paths(
        transactions::begin,
        transactions::show,
        transactions::events,
        transactions::decision,
        transactions::list,
        transactions::explain,
        transactions::rollback,
        transactions::retry,
        interactive::enlist,
        interactive::commit,
        interactive::resolve,
        databases::in_doubt,
        service::live,
        service::ready,
        service::metrics,
        service::error_page,
        document,
    ),
    modifiers(&Problems)
)]
struct ApiDescription;

/// Says of every refusal what holds for all: it is a problem document, and any request may meet a
/// state that should not exist.
struct Problems;

impl Modify for Problems {
    fn modify(&self, description: &mut Description) {
        for item in description.paths.paths.values_mut() {
            let operations = [item.get.as_mut(), item.post.as_mut()];
            operations.into_iter().flatten().for_each(describe_problems);
        }
    }
}

fn describe_problems(operation: &mut Operation) {
    let problem = || ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let responses = &mut operation.responses.responses;
    let internal = "Something is wrong inside the coordinator; its log says what";
    let internal = ResponseBuilder::new().description(internal).build();
    responses.insert("500".to_owned(), internal.into());
    for (status, response) in responses {
        let RefOr::T(response) = response else { continue };
        if status.starts_with(['4', '5']) {
            response.content.clear();
            response.content.insert("application/problem+json".to_owned(), problem());
        }
    }
}

/// This description. It needs no token.
#[utoipa::path(
    get, path = "/openapi.json",
    responses((status = 200, description = "An OpenAPI document", body = Object))
)]
pub(super) async fn document() -> Json<Description> {
    Json(ApiDescription::openapi())
}
