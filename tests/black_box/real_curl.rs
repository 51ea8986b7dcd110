//! curl through the proxy: whole files, ranges, resume, HTTP/2, conditions.

use crate::common::client::Headers;
use crate::common::clients::{Home, program};
use crate::common::{File, Pattern, Proxy, Upstream, run};

#[test]
fn curl_downloads_resumes_and_revalidates() {
    run(async {
        let up = Upstream::start().await;
        let body = Pattern::new(1, 5_000_000);
        up.file("/app.bin", File::new(body).etag("\"e\""));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        let url = proxy.url("files", "app.bin");
        let home = Home::new();
        let curl = async |args: &[&str]| {
            let mut command = home.command(program("curl"));
            command.args(["-sS", "--fail", "--max-time", "30"]).args(args).arg(&url);
            home.run(command).await.ok()
        };
        let read = |name: &str| std::fs::read(home.work().join(name)).unwrap();
        // A range of what is cold, then the whole, then a resume of a half.
        curl(&["-r", "1000-1999", "-o", "part"]).await;
        assert_eq!(read("part"), body.slice(1000, 2000).whole());
        curl(&["-o", "whole"]).await;
        assert_eq!(read("whole"), body.whole());
        std::fs::write(home.work().join("half"), body.slice(0, 2_345_678).whole()).unwrap();
        curl(&["-C", "-", "-o", "half"]).await;
        assert_eq!(read("half"), body.whole());
        curl(&["--http2-prior-knowledge", "-o", "two"]).await;
        assert_eq!(read("two"), body.whole());
        let head = curl(&["-I"]).await.stdout.to_lowercase();
        assert!(
            head.contains("content-length: 5000000") && head.contains("x-artifact-source: cache"),
            "{head}"
        );
        curl(&["--etag-save", "etag", "-o", "again"]).await;
        let status = curl(&["--etag-compare", "etag", "-o", "none", "-w", "%{http_code}"])
            .await
            .stdout;
        assert_eq!(status, "304");
        let whole = up
            .log()
            .into_iter()
            .filter(|seen| seen.method == "GET" && seen.header("range").is_none())
            .count();
        assert_eq!(whole, 1);
        up.switch_off().await;
        curl(&["-o", "offline"]).await;
        assert_eq!(read("offline"), body.whole());
        assert_eq!(proxy.fetch("files", "app.bin").await.source(), "cache");
    });
}
