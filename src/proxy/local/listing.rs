//! What lies in a folder of a local repository: as JSON, and as a page for browsers.

use http::header;
use pingora_error::Result;
use pingora_proxy::Session;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::super::accept::accept;
use super::super::dress::INERT;
use super::{Asked, Client, refuse};
use crate::catalog::rfc3339;
use crate::fields;
use crate::local::folder::{Entry, MOST_ENTRIES, Page};
use crate::session::reply::{self, Problem};

/// Which page of a folder is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    after: Option<String>,
    most: usize,
}

impl Wanted {
    fn read(query: Option<&str>) -> std::result::Result<Wanted, String> {
        let mut wanted = Wanted {
            after: None,
            most: MOST_ENTRIES,
        };
        for (name, value) in form_urlencoded::parse(query.unwrap_or("").as_bytes()) {
            match &*name {
                "after" => wanted.after = Some(value.into_owned()).filter(|after| !after.is_empty()),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MOST_ENTRIES).contains(limit));
                    wanted.most = limit.ok_or_else(|| format!("`limit` is a number from 1 to {MOST_ENTRIES}"))?;
                }
                name => {
                    return Err(format!(
                        "{name:?} is not a parameter of a folder; known are after, limit"
                    ));
                }
            }
        }
        Ok(wanted)
    }
}

impl Client {
    /// Answers with what lies in a folder.
    pub(super) async fn list_folder(&self, session: &mut Session, asked: &Asked) -> Result<bool> {
        let (remote, folder) = (&asked.remote().name, &asked.asset.path.encoded);
        let wanted = match Wanted::read(asked.asset.path.query.as_deref()) {
            Ok(wanted) => wanted,
            Err(wrong) => return refuse(session, asked.problem(400, wrong)).await,
        };
        let listed = self
            .locals
            .list(remote, folder, wanted.after.as_deref(), wanted.most)
            .await;
        let page = match listed {
            Ok(page) => page,
            Err(error) => {
                let problem = Problem::new(503, format!("the folder cannot be listed now: {error}"));
                let problem = problem.at(remote, folder).header(header::RETRY_AFTER, "5");
                return refuse(session, problem).await;
            }
        };
        if page.entries.is_empty() && wanted.after.is_none() && !folder.is_empty() {
            return refuse(session, asked.problem(404, "no such folder in this local remote")).await;
        }
        let (content_type, body) = match wants_html(accept(session).as_deref()) {
            true => ("text/html; charset=utf-8", html(remote, folder, &page)),
            false => ("application/json", format!("{}\n", to_json(remote, folder, &page))),
        };
        let mut headers = vec![
            (header::CONTENT_TYPE, content_type.to_owned()),
            (header::CACHE_CONTROL, "no-cache".to_owned()),
            (header::VARY, "Accept".to_owned()),
        ];
        headers.extend(INERT.into_iter().map(|(name, value)| (name, value.to_owned())));
        reply::send(session, 200, headers, body.into()).await?;
        Ok(true)
    }
}

/// Whether a client names pages among what it takes: browsers do, other programs take anything.
fn wants_html(accept: Option<&str>) -> bool {
    accept.unwrap_or("").split(',').any(|range| {
        let mut parts = range.split(';');
        let name = parts.next().unwrap_or("").trim();
        name.eq_ignore_ascii_case("text/html") && fields::weight(parts) > 0.0
    })
}

/// The last segment of an entry's path; a folder's with its slash.
fn name_of<'a>(folder: &str, path: &'a str) -> &'a str {
    path.strip_prefix(folder).unwrap_or(path)
}

fn to_json(remote: &str, folder: &str, page: &Page) -> Value {
    let entries = page.entries.iter().map(|entry| match entry {
        Entry::Folder(path) => json!({"name": name_of(folder, path), "path": path, "type": "folder"}),
        Entry::File(record) => json!({
            "name": name_of(folder, &record.path),
            "path": record.path,
            "type": "file",
            "size": record.size,
            "digest": record.digest,
            "content_type": record.content_type,
            "modified": record.published_at.map(rfc3339),
        }),
    });
    json!({
        "remote": remote,
        "path": folder,
        "entries": entries.collect::<Vec<_>>(),
        "next": page.next,
    })
}

fn html(remote: &str, folder: &str, page: &Page) -> String {
    let title = escaped(&format!("{remote}/{folder}"));
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title}</title></head>\n<body>\n\
         <h1>{title}</h1>\n<table>\n<tr><th>name</th><th>bytes</th><th>modified</th></tr>\n"
    );
    let mut row = |name: &str, size: String, modified: String| {
        // `./` keeps a colon in a name from being read as the end of a scheme.
        let (link, shown) = (escaped(&format!("./{name}")), escaped(&decoded(name)));
        text.push_str(&format!(
            "<tr><td><a href=\"{link}\">{shown}</a></td><td>{size}</td><td>{modified}</td></tr>\n"
        ));
    };
    if !folder.is_empty() {
        row("../", String::new(), String::new());
    }
    for entry in &page.entries {
        match entry {
            Entry::Folder(path) => row(name_of(folder, path), String::new(), String::new()),
            Entry::File(record) => row(
                name_of(folder, &record.path),
                record.size.to_string(),
                record.published_at.map(rfc3339).unwrap_or_default(),
            ),
        }
    }
    text.push_str("</table>\n");
    if let Some(next) = &page.next {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("after", next)
            .finish();
        text.push_str(&format!(
            "<p><a href=\"{}\">more</a></p>\n",
            escaped(&format!("?{query}"))
        ));
    }
    text.push_str("</body>\n</html>\n");
    text
}

fn decoded(name: &str) -> String {
    percent_encoding::percent_decode_str(name)
        .decode_utf8_lossy()
        .into_owned()
}

/// For text and for attributes in double quotes.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            character => safe.push(character),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn which_page_is_asked_for() {
        let read = |query| Wanted::read(Some(query));
        assert_eq!(
            read("after=a%252Fb%2Fc&limit=7").unwrap(),
            Wanted {
                after: Some("a%2Fb/c".to_owned()),
                most: 7
            }
        );
        assert_eq!(Wanted::read(None).unwrap().most, MOST_ENTRIES);
        for wrong in ["limit=0", "limit=1001", "limit=x", "prefix=a"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn browsers_get_a_page() {
        assert!(wants_html(Some("text/html,application/xhtml+xml,*/*;q=0.8")));
        for other in [None, Some("*/*"), Some("application/json"), Some("text/html;q=0")] {
            assert!(!wants_html(other), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn no_name_is_markup(folder in "[ -~]{0,20}", name in "[ -~]{1,20}", next in proptest::option::of("[ -~]{1,20}")) {
            let page = Page { entries: vec![Entry::Folder(format!("{folder}{name}"))], next };
            let text = html("r", &folder, &page);
            let without = text
                .replace("&amp;", "").replace("&lt;", "").replace("&gt;", "").replace("&quot;", "").replace("&#39;", "");
            prop_assert!(!without.contains('&') && !without.contains('\''), "{text}");
            // As many tags and quotes as a page with harmless names has.
            let plain = Page { entries: vec![Entry::Folder("x".to_owned())], next: page.next.as_ref().map(|_| "x".to_owned()) };
            let plain = html("r", if folder.is_empty() { "" } else { "y" }, &plain);
            for character in ['<', '>', '"'] {
                prop_assert_eq!(text.matches(character).count(), plain.matches(character).count(), "{}", text);
            }
        }
    }
}
