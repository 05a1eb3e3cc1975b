//! `/docs`: Swagger UI over `/openapi.json`. It comes from an archive inside the program, so that a browser fetches nothing
//! from anywhere else.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::sync::Arc;

use axum::Router;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::ZipArchive;
use zip::result::{ZipError, ZipResult};

use crate::error::{Error, Result};
use crate::service::Service;

const PAGE: &str = "/docs";
const FOLDER: &str = "/docs/";
const INDEX: &str = "index.html";

/// Tells the page where the description is. Swagger UI has a file of this name of its own, for a sample.
const INITIALIZER: (&str, &str) = (
    "swagger-initializer.js",
    "window.ui = SwaggerUIBundle({ url: '/openapi.json', dom_id: '#swagger-ui', deepLinking: true,\n  \
     presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset], layout: 'StandaloneLayout' });\n",
);

/// What the page consists of.
const FILES: [(&str, &str); 8] = [
    (INDEX, "text/html; charset=utf-8"),
    ("index.css", "text/css; charset=utf-8"),
    ("swagger-ui.css", "text/css; charset=utf-8"),
    ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    ("swagger-ui-standalone-preset.js", "text/javascript; charset=utf-8"),
    (INITIALIZER.0, "text/javascript; charset=utf-8"),
    ("favicon-16x16.png", "image/png"),
    ("favicon-32x32.png", "image/png"),
];

pub fn routes() -> Router<Arc<Service>> {
    // The page's own links are relative: they need the slash.
    Router::new()
        .route(PAGE, get(async || Redirect::permanent(FOLDER)))
        .route(FOLDER, get(file))
        .route("/docs/{file}", get(file))
}

/// Whether a path is of the page.
pub fn has(path: &str) -> bool {
    path == PAGE || path.starts_with(FOLDER)
}

async fn file(uri: Uri) -> Result<Response> {
    let name = match uri.path().strip_prefix(FOLDER) {
        None | Some("") => INDEX,
        Some(name) => name,
    };
    let (name, kind) = *FILES
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| Error::not_found(format!("no page {}", uri.path())))?;
    let content = tokio::task::spawn_blocking(move || content(name)).await;
    let content = content.map_err(|died| Error::failure(format!("reading {name} failed: {died}")))?;
    Ok(([(header::CONTENT_TYPE, kind)], content?).into_response())
}

fn content(name: &str) -> Result<Vec<u8>> {
    match name == INITIALIZER.0 {
        true => Ok(INITIALIZER.1.into()),
        false => unpacked(name).map_err(|error| Error::failure(format!("{name} of Swagger UI can't be read: {error}"))),
    }
}

/// The archive's folders carry its version.
fn unpacked(name: &str) -> ZipResult<Vec<u8>> {
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    let end = format!("/dist/{name}");
    let paths = archive.file_names().flatten().map(Cow::into_owned);
    let found: Option<String> = paths
        .filter(|path| !path.contains("flavors"))
        .find(|path| path.ends_with(&end));
    let path = found.ok_or(ZipError::FileNotFound)?;
    let mut content = Vec::new();
    archive.by_name(&path)?.read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_there_and_the_page_asks_for_no_other() {
        for (name, _) in FILES {
            assert!(!content(name).expect("it is there").is_empty(), "{name}");
        }
        let page = String::from_utf8(content(INDEX).expect("it is there")).expect("text");
        let asked = page
            .split(['"', '\''])
            .filter(|part| part.contains('.') && !part.contains([' ', '<']));
        let mut count = 0;
        for link in asked {
            let name = link.trim_start_matches("./");
            assert!(FILES.iter().any(|(known, _)| *known == name), "{link}");
            count += 1;
        }
        assert!(count >= 5, "{page}");
    }
}
