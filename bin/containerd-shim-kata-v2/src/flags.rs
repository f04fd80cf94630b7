//! The command line, which containerd writes as Go's `flag` package reads it.
//!
//! One dash or two, `-x v` or `-x=v`, no value for switches; the first word that is no flag is the
//! action, and what follows it is not looked at.

/// What the shim is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Start,
    Delete,
    Info,
    Version,
    /// To be the server: asked for by `start` alone.
    Serve,
}

/// The values of the flags; what was not given is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) namespace: String,
    pub(crate) id: String,
    /// containerd's socket; CRI-O says that it has none by an empty text.
    pub(crate) address: String,
    pub(crate) publish_binary: String,
    /// Only with `delete`.
    pub(crate) bundle: String,
    /// Only to the server: the file of the socket that it is given.
    pub(crate) socket: String,
    pub(crate) debug: bool,
}

/// A command line, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invocation {
    pub(crate) flags: Flags,
    pub(crate) action: Action,
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FlagError {
    #[error("flag provided but not defined: -{name}")]
    Unknown { name: String },
    #[error("flag needs an argument: -{name}")]
    NoValue { name: String },
    #[error("invalid boolean value {value:?} for -{name}: use true or false")]
    NotBoolean { name: String, value: String },
    #[error("bad flag syntax: {word}")]
    Syntax { word: String },
    #[error("unknown action {word:?}: use start, delete, -info or -v")]
    UnknownAction { word: String },
    #[error("no action: this program is started by containerd with start, delete, -info or -v")]
    NoAction,
}

/// Reads a command line without the program's name.
pub(crate) fn parse(args: &[String]) -> Result<Invocation, FlagError> {
    let mut flags = Flags::default();
    let (mut info, mut version) = (false, false);
    let mut words = args.iter();
    let mut action = None;
    while let Some(word) = words.next() {
        let Some(flag) = Flag::read(word)? else {
            action = if word == "--" { words.next() } else { Some(word) };
            break;
        };
        let switch = match flag.name {
            "info" => Some(&mut info),
            "v" | "version" => Some(&mut version),
            "debug" => Some(&mut flags.debug),
            _ => None,
        };
        if let Some(switch) = switch {
            *switch = flag.boolean()?;
            continue;
        }
        let slot = match flag.name {
            "namespace" => &mut flags.namespace,
            "id" => &mut flags.id,
            "address" => &mut flags.address,
            "publish-binary" => &mut flags.publish_binary,
            "bundle" => &mut flags.bundle,
            "socket" => &mut flags.socket,
            name => return Err(FlagError::Unknown { name: name.to_owned() }),
        };
        let value = flag.value.or_else(|| words.next().map(String::as_str));
        value.ok_or_else(|| FlagError::NoValue { name: flag.name.to_owned() })?.clone_into(slot);
    }
    let action = match action.map(String::as_str) {
        _ if version => Action::Version,
        _ if info => Action::Info,
        Some("start") => Action::Start,
        Some("delete") => Action::Delete,
        Some(word) => return Err(FlagError::UnknownAction { word: word.to_owned() }),
        None if !flags.socket.is_empty() => Action::Serve,
        None => return Err(FlagError::NoAction),
    };
    Ok(Invocation { flags, action })
}

/// One word that is a flag.
struct Flag<'a> {
    name: &'a str,
    value: Option<&'a str>,
}

impl<'a> Flag<'a> {
    /// `None` if `word` is none: a word without a dash, a single dash, or the double one that ends
    /// the flags.
    fn read(word: &'a str) -> Result<Option<Self>, FlagError> {
        let Some(rest) = word.strip_prefix('-').filter(|rest| !rest.is_empty() && *rest != "-")
        else {
            return Ok(None);
        };
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        let (name, value) = match rest.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (rest, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(FlagError::Syntax { word: word.to_owned() });
        }
        Ok(Some(Self { name, value }))
    }

    fn boolean(&self) -> Result<bool, FlagError> {
        match self.value {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(value) => {
                Err(FlagError::NotBoolean { name: self.name.to_owned(), value: value.to_owned() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(line: &str) -> Result<Invocation, FlagError> {
        parse(
            &line
                .split(' ')
                .map(|word| if word == "''" { String::new() } else { word.to_owned() })
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn containerd_start_is_understood() {
        let line = "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id c1 -debug start";
        let flags = Flags {
            namespace: "k8s.io".into(),
            id: "c1".into(),
            address: "/run/containerd/containerd.sock".into(),
            publish_binary: "/usr/bin/containerd".into(),
            debug: true,
            ..Flags::default()
        };
        assert_eq!(parsed(line), Ok(Invocation { flags, action: Action::Start }));
    }

    #[test]
    fn crio_start_with_an_empty_address_is_understood() {
        let invocation =
            parsed("-namespace default -address '' -publish-binary /usr/bin/crio -id c1 start")
                .unwrap();
        assert_eq!((invocation.flags.address.as_str(), invocation.flags.id.as_str()), ("", "c1"));
        assert_eq!(invocation.action, Action::Start);
    }

    #[test]
    fn delete_ends_the_flags() {
        let invocation =
            parsed("--namespace=ns --id=c1 --bundle=/b delete -id other --nonsense").unwrap();
        assert_eq!((invocation.action, invocation.flags.id.as_str()), (Action::Delete, "c1"));
        assert_eq!(invocation.flags.bundle, "/b");
    }

    #[test]
    fn switches_take_values_only_with_an_equals_sign() {
        assert!(parsed("-debug start").unwrap().flags.debug);
        assert!(!parsed("-debug=false start").unwrap().flags.debug);
        assert_eq!(
            parsed("-debug=maybe start"),
            Err(FlagError::NotBoolean { name: "debug".into(), value: "maybe".into() })
        );
    }

    #[test]
    fn info_and_version_need_nothing_else() {
        for (line, action) in [
            ("-info", Action::Info),
            ("--info", Action::Info),
            ("-v", Action::Version),
            ("-version", Action::Version),
        ] {
            assert_eq!(parsed(line).unwrap().action, action);
        }
    }

    #[test]
    fn a_server_has_a_socket_and_no_action() {
        assert_eq!(parsed("-namespace n -id c -socket /run/s").unwrap().action, Action::Serve);
        assert_eq!(parsed("-namespace n -id c"), Err(FlagError::NoAction));
    }

    #[test]
    fn mistakes_are_named_as_go_names_them() {
        assert_eq!(
            parsed("-frob start").unwrap_err().to_string(),
            "flag provided but not defined: -frob"
        );
        assert_eq!(parsed("-id").unwrap_err().to_string(), "flag needs an argument: -id");
        assert_eq!(parsed("---id c").unwrap_err().to_string(), "bad flag syntax: ---id");
        assert_eq!(parsed("-=x").unwrap_err().to_string(), "bad flag syntax: -=x");
        assert_eq!(parsed("stop"), Err(FlagError::UnknownAction { word: "stop".into() }));
        assert_eq!(parsed("-- start").unwrap().action, Action::Start);
    }

    proptest! {
        #[test]
        fn every_spelling_of_a_value_means_the_same(value in "[ -~]{0,20}", dashes in "--?") {
            let apart = [format!("{dashes}id"), value.clone(), "start".to_owned()];
            let joined = [format!("{dashes}id={value}"), "start".to_owned()];
            prop_assert_eq!(parse(&apart).unwrap(), parse(&joined).unwrap());
            prop_assert_eq!(parse(&apart).unwrap().flags.id, value);
        }

        #[test]
        fn garbage_never_panics(args in prop::collection::vec(".{0,10}", 0..6)) {
            let _ = parse(&args);
        }
    }
}
