//! What a reload cannot change: what was made of it when the process started lives as long as that does.

use super::model::Settings;

/// The settings that a reload brings in force, and the keys of what was changed and stays as it runs.
pub(super) fn keep(mut settings: Settings, running: &Settings) -> (Settings, Vec<&'static str>) {
    let mut kept = Vec::new();
    let new = &mut settings;
    same(&mut new.listen, &running.listen, "listen", &mut kept);
    same(&mut new.data_dir, &running.data_dir, "data_dir", &mut kept);
    same(&mut new.resolver, &running.resolver, "resolver", &mut kept);
    same(&mut new.stop_timeout, &running.stop_timeout, "stop_timeout", &mut kept);
    same(&mut new.cache, &running.cache, "cache", &mut kept);
    let (clients, old) = (&mut new.clients, &running.clients);
    same(
        &mut clients.http2_streams,
        &old.http2_streams,
        "clients.http2_streams",
        &mut kept,
    );
    same(
        &mut clients.http2_unread,
        &old.http2_unread,
        "clients.http2_unread",
        &mut kept,
    );
    let (upstream, old) = (&mut new.upstream, &running.upstream);
    same(
        &mut upstream.max_concurrent,
        &old.max_concurrent,
        "upstream.max_concurrent",
        &mut kept,
    );
    same(
        &mut upstream.max_per_remote,
        &old.max_per_remote,
        "upstream.max_per_remote",
        &mut kept,
    );
    match (&mut new.tls, &running.tls) {
        // The certificate may be another, where it is shown may not.
        (Some(new), Some(old)) => same(&mut new.listen, &old.listen, "tls.listen", &mut kept),
        (None, None) => {}
        (tls, old) => {
            tls.clone_from(old);
            kept.push("tls");
        }
    }
    (settings, kept)
}

fn same<T: PartialEq + Clone>(new: &mut T, running: &T, key: &'static str, kept: &mut Vec<&'static str>) {
    if new != running {
        new.clone_from(running);
        kept.push(key);
    }
}
