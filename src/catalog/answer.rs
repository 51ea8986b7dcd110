//! The JSON of the API's answers, field by field as documented.

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Page, Record};

/// One object as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Artifact {
    pub remote: String,
    pub path: String,
    pub class: &'static str,
    pub size: u64,
    pub digest: String,
    pub content_type: String,
    pub published_at: Option<String>,
    pub first_seen: String,
    pub last_seen: String,
    pub hits: u64,
    /// `null`: for ever.
    pub fresh_until: Option<String>,
}

impl From<Record> for Artifact {
    fn from(record: Record) -> Self {
        Artifact {
            remote: record.remote,
            path: record.path,
            class: record.class.name(),
            size: record.size,
            digest: record.digest,
            content_type: record.content_type,
            published_at: record.published_at.map(rfc3339),
            first_seen: rfc3339(record.first_seen),
            last_seen: rfc3339(record.last_seen),
            hits: record.hits,
            fresh_until: record.fresh_until.map(rfc3339),
        }
    }
}

/// The answer to a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListAnswer {
    pub artifacts: Vec<Artifact>,
    pub next: Option<String>,
    /// On the first page only.
    pub total: Option<u64>,
    pub bytes: Option<u64>,
}

impl From<Page> for ListAnswer {
    fn from(page: Page) -> Self {
        ListAnswer {
            artifacts: page.records.into_iter().map(Artifact::from).collect(),
            next: page.next,
            total: page.totals.map(|totals| totals.objects),
            bytes: page.totals.map(|totals| totals.bytes),
        }
    }
}

/// The answer to a flush.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FlushAnswer {
    pub matched: u64,
    pub deleted: u64,
    pub expired: u64,
    pub bytes: u64,
    pub dry_run: bool,
    /// The flush goes on in the background, and the numbers are those of now. Nothing that it covers is served any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
}

/// Unix seconds as RFC 3339 in UTC: `2024-02-29T23:59:59Z`. What the format cannot say is shown as the nearest that it
/// can (years 0 to 9999).
pub fn rfc3339(unix: i64) -> String {
    const FIRST: i64 = -62_167_219_200; // 0000-01-01T00:00:00Z
    const LAST: i64 = 253_402_300_799; // 9999-12-31T23:59:59Z
    let time = OffsetDateTime::from_unix_timestamp(unix.clamp(FIRST, LAST)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    // Nothing of these years is left that the format cannot say.
    time.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Class, Totals};

    #[test]
    fn times_are_rfc_3339() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (i64::MIN, "0000-01-01T00:00:00Z"),
            (i64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(unix), text, "{unix}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        const LENGTHS: [u32; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let (mut year, mut month, mut day) = (1890_u32, 1_u32, 1_u32);
        for n in 0..150_000_i64 {
            let unix = (n - 29_219) * 86_400; // 1890-01-01 is 29,219 days before 1970
            assert_eq!(rfc3339(unix), format!("{year:04}-{month:02}-{day:02}T00:00:00Z"));
            let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
            day += 1;
            if day > LENGTHS[month as usize - 1] + u32::from(leap && month == 2) {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }

    #[test]
    fn answers_have_the_documented_fields() {
        let record = Record {
            remote: "pypi".into(),
            path: "packages/a%20b.whl?x=1".into(),
            form: String::new(),
            class: Class::Immutable,
            size: 12,
            digest: "sha256:00".into(),
            content_type: "application/zip".into(),
            etag: Some("\"e\"".into()),
            last_modified: None,
            published_at: None,
            first_seen: 0,
            last_seen: 61,
            hits: 3,
            fresh_until: None,
            key: "0".repeat(32),
        };
        let mut page = Page {
            records: vec![record],
            next: Some("c".into()),
            totals: Some(Totals { objects: 9, bytes: 99 }),
        };
        let json = serde_json::to_string(&ListAnswer::from(page.clone())).expect("plain data");
        assert_eq!(
            json,
            r#"{"artifacts":[{"remote":"pypi","path":"packages/a%20b.whl?x=1","class":"immutable","size":12,"#
                .to_owned()
                + r#""digest":"sha256:00","content_type":"application/zip","published_at":null,"#
                + r#""first_seen":"1970-01-01T00:00:00Z","last_seen":"1970-01-01T00:01:01Z","hits":3,"#
                + r#""fresh_until":null}],"next":"c","total":9,"bytes":99}"#
        );
        page.totals = None;
        page.next = None;
        page.records.clear();
        let json = serde_json::to_string(&ListAnswer::from(page)).expect("plain data");
        assert_eq!(json, r#"{"artifacts":[],"next":null,"total":null,"bytes":null}"#);
        let json = serde_json::to_string(&FlushAnswer {
            dry_run: true,
            matched: 1,
            ..FlushAnswer::default()
        });
        assert_eq!(
            json.expect("plain data"),
            r#"{"matched":1,"deleted":0,"expired":0,"bytes":0,"dry_run":true}"#
        );
    }
}
