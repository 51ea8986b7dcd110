//! Lists that come in pages: where upstream says that the next one is.

use http::{HeaderMap, header};

use crate::fields;

/// A `Link` of which it cannot be told where the next page is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// Whether a page can be handed on ([`crate::formats::asset::CheckPage`]).
pub(super) fn check(headers: &HeaderMap) -> Result<(), &'static str> {
    let unreadable = "upstream's list has another page, and its Link header does not say where: the rest cannot be had";
    next_page(headers).map(|_| ()).map_err(|_| unreadable)
}

/// The query of the next page (distribution-spec, "Content Discovery": the same list with another query): that of the link
/// with `rel=next`, else, as clients read it, of the first link that says nothing of what it is.
///
/// # Errors
/// There is a next page, and clients could not be told where.
pub(super) fn next_page(headers: &HeaderMap) -> Result<Option<String>, Unreadable> {
    let mut unnamed = None;
    for field in headers.get_all(header::LINK) {
        let field = String::from_utf8_lossy(field.as_bytes());
        let mut rest = &*field;
        while let Some((link, after)) = PageLink::read(rest)? {
            match &link.relations {
                Some(relations)
                    if relations
                        .split_ascii_whitespace()
                        .any(|one| one.eq_ignore_ascii_case("next")) =>
                {
                    return link.query().map(Some);
                }
                Some(_) => {}
                None => unnamed = unnamed.or(Some(link.query())),
            }
            rest = after;
        }
    }
    unnamed.transpose()
}

/// One link of a `Link` field (RFC 8288 section 3), also as registries misspell it.
struct PageLink<'a> {
    target: &'a str,
    /// `rel`
    relations: Option<String>,
}

impl<'a> PageLink<'a> {
    /// The first link of `text`, and what follows it.
    fn read(text: &'a str) -> Result<Option<(Self, &'a str)>, Unreadable> {
        let text = text.trim_start_matches([' ', '\t', ',']);
        if text.is_empty() {
            return Ok(None);
        }
        let (target, mut rest) = match text.strip_prefix('<') {
            Some(text) => text.split_once('>').ok_or(Unreadable)?,
            // Without brackets everything before the parameters is the target.
            None => text.split_at(text.find(';').unwrap_or(text.len())),
        };
        let mut relations = None;
        loop {
            rest = rest.trim_start_matches(|c| !matches!(c, ';' | ','));
            let Some(parameter) = rest.strip_prefix(';') else {
                let target = target.trim();
                return Ok(Some((PageLink { target, relations }, rest)));
            };
            let (name, after) = fields::token(parameter.trim_start());
            rest = after;
            let Some(value) = after.trim_start().strip_prefix('=').map(str::trim_start) else {
                continue;
            };
            let single = value.strip_prefix('\'').and_then(|value| value.split_once('\''));
            let (value, after) = match single {
                Some((value, after)) => (value.to_owned(), after),
                None => fields::value(value, &[';', ',']),
            };
            rest = after;
            if name.eq_ignore_ascii_case("rel") {
                // Of several the first counts.
                relations = relations.or(Some(value));
            }
        }
    }

    fn query(&self) -> Result<String, Unreadable> {
        let (_, query) = self
            .target
            .split('#')
            .next()
            .and_then(|target| target.split_once('?'))
            .ok_or(Unreadable)?;
        let is_sendable = !query.is_empty() && query.bytes().all(|byte| byte.is_ascii_graphic());
        is_sendable.then(|| query.to_owned()).ok_or(Unreadable)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn linked(links: &[&str]) -> Result<Option<String>, Unreadable> {
        let mut headers = HeaderMap::new();
        for link in links {
            headers.append(header::LINK, HeaderValue::from_bytes(link.as_bytes()).unwrap());
        }
        next_page(&headers)
    }

    #[test]
    fn the_next_page_is_found_where_clients_find_it() {
        for link in [
            "</v2/a/tags/list?last=x&n=2>; rel=\"next\"",
            "<https://registry.example/v2/a/tags/list?last=x&n=2>; rel=next",
            "<?last=x&n=2>;rel=\"next\"",
            "<?last=x&n=2#f>; REL=Next",
            "<?last=nextcloud,old>; rel=\"prev\", <?last=x&n=2>; title=a; rel=\"last next\"",
            // Without brackets, a relation, or quotes that HTTP knows.
            "</v2/a/tags/list?last=x&n=2>",
            "</v2/a/tags/list?last=x&n=2>; title=\"a, b; rel=prev\"",
            "/v2/a/tags/list?last=x&n=2; rel=\"next\"",
            "https://registry.example/v2/a/tags/list?last=x&n=2",
            "</v2/a/tags/list?last=x&n=2>; rel='next'",
            "</v2/a/tags/list?last=x&n=2>; rel='last next'; title='x'",
            "<?last=a>; rel='prev', <?last=x&n=2>",
            "<?last=a>, <?last=x&n=2>; rel=next",
            "<?last=x&n=2> ; crossorigin ; rel = \"next\"",
        ] {
            assert_eq!(linked(&[link]), Ok(Some("last=x&n=2".to_owned())), "{link}");
        }
        assert_eq!(
            linked(&["<a?b>; rel=prev", "<c?d>; rel=next"]),
            Ok(Some("d".to_owned()))
        );
        for links in [
            &[][..],
            &[""],
            &["<a?b>; rel=\"prev\""],
            &["<a>; rel=help, <b>; rel=first"],
        ] {
            assert_eq!(linked(links), Ok(None), "{links:?}");
        }
        for link in [
            "next",
            "<no-query>; rel=\"next\"",
            "<?n=1; rel=\"next\"",
            "<>",
            "<?>",
            "<a?b c>",
            "<a?é>",
            "<a>",
        ] {
            assert_eq!(linked(&[link]), Err(Unreadable), "{link}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_link_is_read_or_refused(link in "[a<>?;,=\"'# relnxt]{0,24}") {
            if let Ok(Some(query)) = linked(&[&link]) {
                proptest::prop_assert!(!query.is_empty() && link.contains(&query));
            }
        }
    }
}
