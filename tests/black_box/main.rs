//! The program as its users meet it: every test starts the real binary, and talks to it over sockets. One module for each
//! subject; `tests/README.md` says where a test goes.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]
#![allow(unreachable_pub, reason = "nobody reaches anything of a program of tests")]

mod common;

mod access;
mod access_log;
mod bucket;
mod bucket_refusals;
mod bulk;
mod caching;
mod cargo;
mod command_line;
mod connections;
mod credentials;
mod dates;
mod disk;
mod docker;
mod docker_digest;
mod docker_errors;
mod docker_large;
mod docker_lists;
mod docker_mirror;
mod docker_pull;
mod docker_tags;
mod docker_token;
mod errors;
mod faults;
mod fleet;
mod fleet_flush;
mod fleet_local;
mod fleet_nodes;
mod fleet_outages;
mod fleet_redis;
mod fleet_walk;
mod generic;
mod harness;
mod headers;
mod helm;
mod http;
mod limits;
mod local;
mod metrics;
mod npm;
mod oci_conformance;
mod packages;
mod packaging;
mod paths;
mod postgres;
mod pypi;
mod quarantine;
mod quarantine_report;
mod real_apk;
mod real_cargo;
mod real_containerd;
mod real_curl;
mod real_docker;
mod real_helm;
mod real_npm;
mod real_pypi;
mod real_rpm;
mod redirects;
mod reload;
mod rpm;
mod startup;
mod stopping;
mod stores;
mod streaming;
mod tls;
mod upgrade;
mod upstreams;
mod verify;
mod verify_apk;
mod verify_rpm;
