//! `env`: what a report of a defect should tell.

use std::path::Path;

use anyhow::{Context, Result};
use kata_host_runtime::{Environment, Runtime};

use super::{Host, print};
use crate::cli::EnvArgs;

pub(super) fn run(host: &Host, args: &EnvArgs) -> Result<()> {
    let option = Some(host.config.as_str()).filter(|path| !path.is_empty()).map(Path::new);
    let environment = Environment::of(&Runtime::load(option, None)?);
    if args.json {
        let text = serde_json::to_string_pretty(&environment)?;
        return print(&format!("{text}\n"));
    }
    print(&toml::to_string(&environment).context("the environment is no TOML")?)
}
