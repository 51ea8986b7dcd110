//! `artifactapi reindex`: the catalogue, rebuilt from what the bucket says of itself.
