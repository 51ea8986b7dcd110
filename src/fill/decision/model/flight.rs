//! What a flight does, on one node.

use super::*;

impl World {
    // A flight, before it asks upstream: `Fills::share`.

    pub(super) fn drive(&mut self, n: usize) {
        for _ in 0..20 {
            let node = &self.nodes[n];
            let Some(flight) = node.flight.as_ref().filter(|_| node.is_up()) else {
                return;
            };
            match flight.stage {
                Stage::Looking if self.now < flight.again => return,
                Stage::Looking => {}
                Stage::Asking(_) => return,
                Stage::Joined(other) if self.is_waited_for(other) => return,
                Stage::Joined(other) => {
                    self.set_stage(n, Stage::Looking);
                    // It was not heard of again, or has landed.
                    if let Came::Done = self.ask_node(n, other) {
                        return;
                    }
                }
            }
            let previous = self.unless_gone(n);
            let copy = if previous.is_none() { self.find(n) } else { None };
            let node = &self.nodes[n];
            let word = self.redis.word.clone().filter(|_| node.is_connected);
            let word = word.filter(|word| !node.is_flushed_word(word, self.now));
            let holder = self.holder().filter(|holder| *holder != n && node.is_connected);
            let look = Look {
                own: previous.map(|stored| stored.version),
                is_seen: node.is_connected,
                is_filled_elsewhere: holder.is_some(),
                word: word.as_ref(),
                copy: copy.map(|copy| (copy.version, copy.life())),
                is_forced: false,
                may_lock: true,
            };
            let mut came = Came::ToNothing;
            let steps = plan(&Known::by(&look, POLICY, self.now));
            assert!(
                matches!(steps.last(), Some(Step::Lock | Step::Alone)),
                "a plan must conclude: {steps:?}"
            );
            for step in steps {
                came = self.step(n, step, holder, word.as_ref(), copy);
                if !matches!(came, Came::ToNothing) {
                    break;
                }
            }
            match came {
                Came::ToNothing => return self.ask_upstream(n),
                Came::Done => return,
                Came::Later => return self.nodes[n].flight.as_mut().unwrap().again = self.now + PAUSE,
                Came::LookAgain => {}
            }
        }
        panic!("node {n} looks for ever");
    }

    pub(super) fn step(
        &mut self,
        n: usize,
        step: Step,
        holder: Option<usize>,
        word: Option<&Word>,
        copy: Option<Stored>,
    ) -> Came {
        let now = self.now;
        let is_patient = now < self.nodes[n].flight.as_ref().unwrap().patience;
        match step {
            Step::Join => {
                let came = self.ask_node(n, holder.unwrap());
                let flight = self.nodes[n].flight.as_mut();
                match (came, flight) {
                    (Came::LookAgain, Some(flight)) if flight.refused < 5 => {
                        flight.refused += 1;
                        Came::Later
                    }
                    (Came::Later, _) if is_patient => Came::Later,
                    (Came::Done, _) => Came::Done,
                    _ => Came::ToNothing,
                }
            }
            Step::Trust => {
                let mut stored = self.previous(n).unwrap();
                stored.trust(Life::said_by(word.unwrap()), now);
                self.nodes[n].put_back(stored);
                self.land(n, Some(stored));
                Came::Done
            }
            Step::BringNamed => {
                let word = word.unwrap();
                match copy.or_else(|| self.find(n)).filter(|copy| copy.version == word.id) {
                    Some(copy) => self.bring(n, copy, Life::said_by(word)),
                    None => Came::ToNothing,
                }
            }
            Step::AskNamed => {
                let Named { name, .. } = &word.unwrap().node;
                let named = (0..NODES).find(|node| *node != n && self.nodes[*node].name.to_string() == *name);
                match named.map(|named| self.ask_node(n, named)) {
                    Some(Came::Done) => Came::Done,
                    _ => Came::ToNothing,
                }
            }
            Step::Bring => self.bring(n, copy.unwrap(), copy.unwrap().life()),
            Step::BringBack | Step::BringBackNamed => {
                let copy = copy.or_else(|| self.find(n));
                let copy = copy.filter(|copy| step == Step::BringBack || word.unwrap().id == copy.version);
                if let Some(mut copy) = copy {
                    copy.expire(now);
                    copy.id = self.number();
                    self.nodes[n].stored = Some(copy);
                    self.nodes[n].flight.as_mut().unwrap().previous = Some(copy);
                }
                Came::ToNothing
            }
            Step::Lock => match self.take(n) {
                Some(Ok(fence)) => {
                    self.nodes[n].lease = Some(fence);
                    let own = self.previous(n).map(|stored| stored.version);
                    let flight = self.nodes[n].flight.as_mut().unwrap();
                    let heard = self.redis.word.as_ref().filter(|_| flight.news < 3);
                    if heard.is_some_and(|word| is_news(POLICY, own, word, now)) {
                        flight.news += 1;
                        self.release(n);
                        return Came::LookAgain;
                    }
                    Came::ToNothing
                }
                Some(Err(other)) if other != n && is_patient => Came::Later,
                Some(Err(_)) | None => Came::ToNothing,
            },
            Step::Alone => Came::ToNothing,
        }
    }

    pub(super) fn previous(&self, n: usize) -> Option<Stored> {
        self.nodes[n].flight.as_ref().unwrap().previous
    }

    /// `Fills::unless_gone`.
    pub(super) fn unless_gone(&mut self, n: usize) -> Option<Stored> {
        let previous = self.previous(n);
        let is_gone = |body: &Stored| self.nodes[n].judge(body.stored_at, Millis::MAX, self.now) == Some(false);
        let kept = previous.filter(|body| !is_gone(body));
        self.nodes[n].flight.as_mut().unwrap().previous = kept;
        kept
    }

    pub(super) fn set_stage(&mut self, n: usize, stage: Stage) {
        self.nodes[n].flight.as_mut().unwrap().stage = stage;
    }

    /// What the bucket has: `Fills::find`.
    pub(super) fn find(&self, n: usize) -> Option<Stored> {
        let mut copy = self.bucket.filter(|_| !self.is_bucket_away)?;
        match self.nodes[n].judge(copy.stored_at, copy.checked_at, self.now) {
            None => {}
            Some(true) => copy.expire(copy.checked_at),
            Some(false) => return None,
        }
        Some(copy)
    }

    pub(super) fn bring(&mut self, n: usize, mut copy: Stored, life: Life) -> Came {
        if self.nodes[n].judge(copy.stored_at, life.checked_at, self.now).is_some() {
            return Came::ToNothing;
        }
        copy.trust(life, self.now);
        self.take_in(n, copy);
        Came::Done
    }

    /// What is there whole is here whole at once.
    pub(super) fn take_in(&mut self, n: usize, mut body: Stored) {
        body.id = self.number();
        self.nodes[n].stored = Some(body);
        self.land(n, Some(body));
        self.verify(n);
    }

    /// `Fills::verify`.
    pub(super) fn verify(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if let Some(word) = self.redis.word.as_ref().filter(|_| node.is_connected)
            && !node.is_flushed_word(word, self.now)
        {
            node.adopt(word, self.now);
        }
    }

    pub(super) fn is_waited_for(&self, other: usize) -> bool {
        let node = &self.nodes[other];
        let lives = node.is_up() || !node.is_dead && self.holder() == Some(other);
        lives && node.flight.is_some()
    }

    /// `Source::ask` of a node, and what is done with its answer. `Later`: it cannot be asked; `LookAgain`: it has nothing.
    pub(super) fn ask_node(&mut self, n: usize, other: usize) -> Came {
        let node = &self.nodes[other];
        if !node.is_up() {
            return Came::Later;
        }
        if node.flight.is_some() {
            self.set_stage(n, Stage::Joined(other));
            return Came::Done;
        }
        let Some(offered) = node.growing.map(|growing| growing.body).or(node.stored) else {
            return Came::LookAgain;
        };
        let (is_growing, now) = (node.growing.is_some(), self.now);
        let same = self
            .previous(n)
            .filter(|own| !is_growing && own.version == offered.version);
        let stored_at = same.map_or(offered.stored_at, |own| own.stored_at);
        if self.nodes[n].judge(stored_at, offered.checked_at, now).is_some() {
            return Came::LookAgain;
        }
        if let Some(mut previous) = same {
            previous.trust(offered.life(), now);
            previous.asked_at = offered.asked_at;
            self.nodes[n].put_back(previous);
            self.land(n, Some(previous));
            return Came::Done;
        }
        if is_growing {
            let body = Stored {
                id: self.number(),
                ..offered
            };
            self.nodes[n].growing = Some(Growing {
                body,
                from: Some(other),
                is_alone: false,
            });
            self.land(n, Some(body));
        } else {
            self.take_in(n, offered);
        }
        Came::Done
    }

    // Upstream.

    pub(super) fn ask_upstream(&mut self, n: usize) {
        let last_flush = self
            .nodes
            .iter()
            .flat_map(|node| &node.flushes)
            .map(|(at, _)| *at)
            .max();
        let is_flushed = |began: Millis| last_flush.is_some_and(|at| at >= began);
        // Of a fetch that was flushed meanwhile nobody takes anything, and its lock is in their way: one gives up waiting.
        let is_outdated = self.nodes.iter().any(|node| match (&node.growing, &node.flight) {
            (Some(growing), _) => is_flushed(growing.body.checked_at) || growing.is_alone,
            (None, Some(flight)) => match flight.stage {
                Stage::Asking(began) => is_flushed(began) || flight.refused > 0,
                Stage::Looking | Stage::Joined(_) => false,
            },
            (None, None) => false,
        });
        if let Some((began, until)) = self.last_fetch.filter(|_| self.is_well && !is_outdated) {
            let is_due = self.now >= until || is_flushed(began);
            assert!(is_due, "node {n} fetches what is fresh on another node");
        }
        self.last_fetch = Some((self.now, Millis::MAX));
        self.set_stage(n, Stage::Asking(self.now));
    }

    pub(super) fn answer(&mut self, n: usize) {
        let Some(Flight {
            stage: Stage::Asking(began),
            previous,
            ..
        }) = self.nodes[n].flight
        else {
            return;
        };
        let now = self.now;
        let is_confirmed = previous.is_some_and(|previous| previous.version == self.upstream);
        match self.unless_gone(n) {
            // It is asked for as a whole.
            None if is_confirmed => {}
            Some(mut previous) if is_confirmed => {
                let is_flushed = self.nodes[n].judge(previous.stored_at, began - 1, now).is_some();
                let until = if is_flushed { began } else { now + TTL };
                (previous.checked_at, previous.fresh_until) = (began, until);
                (previous.verified_at, previous.asked_at) = (now, now);
                // What a flush deletes is not had from elsewhere, though upstream confirmed it since.
                self.last_fetch = Some((previous.stored_at, until));
                self.nodes[n].put_back(previous);
                self.land(n, Some(previous));
                self.announce(n, previous);
                self.release(n);
            }
            _ => {
                let body = Stored {
                    version: self.upstream,
                    id: self.number(),
                    stored_at: now,
                    checked_at: now,
                    fresh_until: now + TTL,
                    verified_at: now,
                    asked_at: now,
                };
                self.last_fetch = Some((began, body.fresh_until));
                let is_alone = self.nodes[n].flight.as_ref().unwrap().refused > 0;
                self.nodes[n].growing = Some(Growing {
                    body,
                    from: None,
                    is_alone,
                });
                self.land(n, Some(body));
            }
        }
    }

    pub(super) fn fail(&mut self, n: usize) {
        self.is_well = false;
        let now = self.now;
        match self.nodes[n].flight {
            Some(Flight {
                stage: Stage::Asking(_),
                ..
            }) => {
                let mut previous = self.unless_gone(n);
                if let Some(previous) = &mut previous {
                    // `Fills::stale`
                    previous.fresh_until = now + TTL;
                    (previous.verified_at, previous.asked_at) = (now, now);
                    self.nodes[n].put_back(*previous);
                }
                self.land(n, previous);
                self.release(n);
                let waits = |m: &usize| {
                    self.nodes[*m]
                        .flight
                        .as_ref()
                        .is_some_and(|flight| flight.stage == Stage::Joined(n))
                };
                for m in (0..NODES).filter(waits).collect::<Vec<_>>() {
                    self.share_failure(m, previous);
                }
            }
            _ if self.nodes[n].growing.is_some_and(|growing| growing.from.is_none()) => {
                self.nodes[n].growing = None;
                self.release(n);
            }
            _ => {}
        }
    }

    /// What comes of the question to a node whose flight failed, and that has `stale`: `Reply::Unreachable`, or that.
    pub(super) fn share_failure(&mut self, n: usize, stale: Option<Stored>) {
        match (self.unless_gone(n), stale) {
            (Some(own), Some(stale)) if own.version == stale.version => {}
            (Some(mut own), _) => {
                own.fresh_until = self.now + TTL;
                (own.verified_at, own.asked_at) = (self.now, self.now);
                self.nodes[n].put_back(own);
                self.land(n, Some(own));
            }
            (None, Some(stale)) => self.take_in(n, stale),
            (None, None) => self.ask_upstream(n),
        }
    }

    /// The body has come: what is whole is stored.
    pub(super) fn end(&mut self, n: usize) {
        let Some(growing) = self.nodes[n].growing else { return };
        let mut is_own = growing.from.is_none();
        if let Some(other) = growing.from {
            let node = &self.nodes[other];
            let sends = [node.growing.map(|growing| growing.body), node.stored];
            let sends = sends
                .into_iter()
                .flatten()
                .any(|body| body.stored_at == growing.body.stored_at);
            if !(node.is_up() && sends) {
                // Taken up: `Fills::rest_of`.
                if self.upstream != growing.body.version {
                    self.nodes[n].growing = None;
                    return;
                }
                self.nodes[n].lease = self.take(n).and_then(Result::ok);
                self.last_fetch = Some((growing.body.checked_at, growing.body.fresh_until));
                is_own = true;
            } else if node.growing.is_some() {
                return;
            }
        }
        let node = &mut self.nodes[n];
        (node.growing, node.stored) = (None, Some(growing.body));
        node.served = growing.body.version;
        if is_own {
            self.nodes[n].is_queued = true;
            self.announce(n, growing.body);
            self.release(n);
        } else {
            self.verify(n);
        }
    }
}
