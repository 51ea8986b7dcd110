//! The answering side.

use std::sync::Arc;

use super::message::{Life, Reply};
use super::seal::Asked;
use crate::cache::{Finished, Object};
use crate::fill::{Fills, How, Outcome, PATIENCE};

impl Fills {
    /// What this node says to what it was asked; with the object whose body follows.
    pub async fn reply(&self, asked: &Asked) -> (Reply, Option<Arc<Object>>) {
        let question = &asked.question;
        if question.key.text.is_empty() || !asked.is_for_me {
            let me = self.shared.fleet.as_ref().map(|fleet| fleet.me().clone());
            let (name, url) = me.map_or((String::new(), None), |me| (me.name, me.url));
            return (Reply::Node { name, url }, None);
        }
        let flight = self.flight_of(&question.key.hash);
        let outcome = match flight {
            Some(mut outcome) => match tokio::time::timeout(PATIENCE, outcome.wait_for(Option::is_some)).await {
                Ok(Ok(outcome)) => outcome.clone(),
                _ => None,
            },
            None => self
                .store
                .open_object(&question.key)
                .await
                .map(|object| Outcome::Object(object, How::Found)),
        };
        match outcome {
            None => (Reply::Nothing, None),
            Some(Outcome::Direct) => (Reply::Yours, None),
            Some(Outcome::Answer(answer)) => (Reply::of_answer(&answer), None),
            Some(Outcome::Object(object, _)) if !object.is_kept() || object.head.unframed => (Reply::Yours, None),
            Some(Outcome::Object(object, _)) if object.is_complete() && object.identity() == question.have => {
                (Reply::Same(Life::of(&object)), None)
            }
            // Which of the two is older, only upstream can tell.
            Some(Outcome::Object(_, How::Stale(_))) if question.have.is_some() => (Reply::Unreachable, None),
            Some(Outcome::Object(object, how)) => {
                let reply = Reply::Object {
                    head: Box::new(object.head.clone()),
                    life: Life::of(&object),
                    finished: object.finished().map(|Finished { length, sha256 }| (length, sha256)),
                    fetched: how == How::Fetched || !object.is_complete(),
                };
                (reply, Some(object))
            }
        }
    }
}
