//! What all answers say, wherever they are written: the id of their request, and what belongs to the root that they are below.

use std::any::Any;

use async_trait::async_trait;
use pingora_core::modules::http::{HttpModule, HttpModuleBuilder, Module};
use pingora_error::Result;
use pingora_http::ResponseHeader;

use crate::formats::root::Root;
use crate::on_behalf::{FIELD, RequestId};

/// Makes a [`Voice`] for each request.
pub(super) struct VoiceBuilder;

impl HttpModuleBuilder for VoiceBuilder {
    fn init(&self) -> Module {
        Box::new(Voice::default())
    }
}

/// What an answer is yet to say.
#[derive(Default)]
pub(super) struct Voice {
    pub id: Option<RequestId>,
    /// With the target that was asked for.
    pub root: Option<(&'static dyn Root, String)>,
}

#[async_trait]
impl HttpModule for Voice {
    async fn response_header_filter(&mut self, response: &mut ResponseHeader, _: bool) -> Result<()> {
        if response.status.as_u16() < 200 {
            return Ok(());
        }
        if let Some(id) = &self.id {
            response.insert_header(FIELD, id.header())?;
        }
        let Some((root, target)) = &self.root else {
            return Ok(());
        };
        for (name, value) in root.says(target, &response.headers) {
            match value {
                Some(value) => response.insert_header(name, value)?,
                None => {
                    response.remove_header(&name);
                }
            }
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
