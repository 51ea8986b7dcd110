//! What the nodes share: Redis, with locks, words and news; flushes; the bucket.

use super::*;

impl World {
    // Redis.

    pub(super) fn holder(&self) -> Option<usize> {
        let (holder, ..) = self.redis.lock.filter(|(.., until)| *until > self.now)?;
        Some(holder)
    }

    /// `fleet/lock.rs`, TAKE. `None`: Redis is away.
    pub(super) fn take(&mut self, n: usize) -> Option<Result<u64, usize>> {
        if !self.nodes[n].is_connected {
            return None;
        }
        if let Some(holder) = self.holder() {
            return Some(Err(holder));
        }
        let said = self.redis.word.as_ref().map_or(0, |word| word.generation);
        let fence = self.fence().max(said + 1);
        self.redis.lock = Some((n, fence, self.now + LEASE));
        Some(Ok(fence))
    }

    pub(super) fn fence(&mut self) -> u64 {
        self.last_fence = (self.now * 1000).max(self.last_fence + 1);
        self.last_fence
    }

    pub(super) fn release(&mut self, n: usize) {
        let lease = self.nodes[n].lease.take();
        if self.nodes[n].is_connected && self.redis.lock.is_some_and(|(_, fence, _)| Some(fence) == lease) {
            self.redis.lock = None;
        }
    }

    /// `Fills::announce`.
    pub(super) fn announce(&mut self, n: usize, body: Stored) {
        let fence = match self.nodes[n].lease {
            Some(fence) => Fence(fence),
            None => Fence(self.fence()).of_what_was_checked(body.checked_at),
        };
        let word = Word {
            id: body.version,
            class: Class::Mutable,
            checked_at: body.checked_at,
            fresh_until: body.fresh_until,
            etag: None,
            generation: fence.0,
            node: Named {
                name: self.nodes[n].name.to_string(),
                url: None,
            },
            in_bucket: false,
        };
        match self.nodes[n].is_connected {
            true => self.publish(n, word),
            false => self.nodes[n].outbox.push(word),
        }
    }

    /// `fleet/publish.rs`, PUBLISH.
    pub(super) fn publish(&mut self, n: usize, word: Word) {
        match &self.redis.word {
            Some(known) if known.generation > word.generation => {
                let newer = known.clone();
                let (now, node) = (self.now, &mut self.nodes[n]);
                match node.is_flushed_word(&newer, now) {
                    false => node.adopt(&newer, now),
                    true => node.stored.iter_mut().for_each(|stored| stored.expire(now)),
                }
                // It had lost its lock while it asked. What it showed its own clients may be newer than what the later fill
                // brought: the fleet goes by the lock all the same.
                node.served = node.served.min(newer.id);
            }
            known => {
                let is_older = |known: &Word| known.id > word.id && known.generation / 1000 <= word.began();
                if known.as_ref().is_some_and(is_older) {
                    self.overtaken.push(word.generation);
                    self.nodes[n].served = self.nodes[n].served.min(word.id);
                }
                self.redis.word = Some(word.clone());
                self.redis.log.push((n, News::Changed(word)));
            }
        }
    }

    /// Hears the next of the news; whether there was one.
    pub(super) fn hear(&mut self, n: usize) -> bool {
        let now = self.now;
        let Some((by, news)) = self.redis.log.get(self.nodes[n].heard).cloned() else {
            return false;
        };
        self.nodes[n].heard += 1;
        if by == n {
            return true;
        }
        match news {
            News::Changed(word) => {
                let node = &mut self.nodes[n];
                if node.is_flushed_word(&word, now) {
                    return true;
                }
                // `Fills::outrun`
                if node.growing.is_some() && node.lease.is_some_and(|fence| fence < word.generation) {
                    node.growing = None;
                    self.release(n);
                }
                let node = &mut self.nodes[n];
                node.adopt(&word, now);
                let is_older = |stored: &Stored| stored.version < word.id && node.is_fresh(stored, now);
                assert!(
                    !node.stored.as_ref().is_some_and(is_older),
                    "node {n} goes on serving an older version than the fleet's"
                );
                if self.overtaken.contains(&word.generation) {
                    node.served = node.served.min(word.id);
                }
            }
            News::Flushed(at, mode) => self.learn(n, at, mode),
            News::Reupload(version) => {
                let node = &mut self.nodes[n];
                node.is_queued |= node.stored.is_some_and(|stored| stored.version == version);
            }
        }
        true
    }

    /// Whoever finds Redis answering has heard what it missed.
    pub(super) fn connect(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if self.redis.is_away || !node.is_up() {
            return;
        }
        node.is_connected = true;
        if node.epoch != self.redis.epoch {
            (node.epoch, node.heard, node.distrusted) = (self.redis.epoch, 0, self.now);
        }
        let known = node.flushes.clone();
        for (at, mode) in self.redis.flushes.clone() {
            if !known.contains(&(at, mode)) {
                self.learn(n, at, mode);
            }
        }
        while self.hear(n) {}
        let unsent = match self.redis.flushes.is_empty() {
            // Redis has lost them.
            true => known,
            false => std::mem::take(&mut self.nodes[n].unsent_flushes),
        };
        for (at, mode) in unsent {
            self.tell_flush(n, at, mode);
        }
        for word in std::mem::take(&mut self.nodes[n].outbox) {
            self.publish(n, word);
        }
        if self.nodes[n].lease.is_none() && self.holder() == Some(n) {
            self.redis.lock = None;
        }
    }

    // Flushes.

    pub(super) fn flush(&mut self, n: usize, mode: Mode) {
        let at = self.now;
        self.learn(n, at, mode);
        match self.nodes[n].is_connected {
            true => self.tell_flush(n, at, mode),
            false => self.nodes[n].unsent_flushes.push((at, mode)),
        }
    }

    pub(super) fn tell_flush(&mut self, n: usize, at: Millis, mode: Mode) {
        if !self.redis.flushes.contains(&(at, mode)) {
            self.redis.flushes.push((at, mode));
            self.redis.log.push((n, News::Flushed(at, mode)));
        }
    }

    /// From now on nothing that is covered is served here: `Sweep`.
    pub(super) fn learn(&mut self, n: usize, at: Millis, mode: Mode) {
        let (now, node) = (self.now, &mut self.nodes[n]);
        if node.flushes.contains(&(at, mode)) {
            return;
        }
        node.flushes.push((at, mode));
        let is_covered = |body: &Stored| {
            let moment = if mode == Mode::Expire {
                body.checked_at
            } else {
                body.stored_at
            };
            was_before(moment, at, now)
        };
        let judged = |mut body: Stored| match (is_covered(&body), mode) {
            (true, Mode::Delete) => None,
            (true, Mode::Expire) => {
                body.expire(at - 1);
                Some(body)
            }
            (false, _) => Some(body),
        };
        node.stored = node.stored.and_then(judged);
        if let Some(growing) = &mut node.growing {
            match judged(growing.body) {
                Some(body) => growing.body = body,
                None => {
                    node.growing = None;
                    self.release(n);
                }
            }
        }
    }

    // The bucket.

    pub(super) fn upload(&mut self, n: usize) {
        let word = self.redis.word.clone().filter(|_| self.nodes[n].is_connected);
        let is_outdated = |body: &Stored| word.as_ref().is_some_and(|word| word.id != body.version);
        let node = &mut self.nodes[n];
        match (node.uploading.take(), node.stored) {
            (Some(copy), _) => {
                self.bucket = Some(copy);
                if is_outdated(&copy) {
                    self.redis.log.push((n, News::Reupload(word.unwrap().id)));
                }
            }
            (None, Some(stored)) if std::mem::take(&mut node.is_queued) && !is_outdated(&stored) => {
                node.uploading = Some(stored);
            }
            _ => {}
        }
    }
}
