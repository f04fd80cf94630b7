//! How a table of the file is declared: fields, defaults and descriptions in one place.

use std::path::Path;

use crate::off::OffKey;
use crate::setting::Input;

/// One key that does something, with a value.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    /// Its name in the file.
    pub(crate) name: &'static str,
    /// Its description, a line each, as written in the source (with a leading space).
    pub(crate) doc: &'static [&'static str],
    /// What its values must be.
    pub(crate) expected: String,
    /// Its value as TOML.
    pub(crate) value: String,
}

/// A table of the configuration file.
pub(crate) trait Section {
    /// The table's name in the file.
    const TABLE: &'static str;
    /// What the table is about, a line each.
    const ABOUT: &'static [&'static str];
    /// Keys that are accepted only while they ask for nothing.
    const OFF: &'static [OffKey];
    /// Tables inside it that hold nothing but such keys.
    const OFF_TABLES: &'static [(&'static str, &'static [OffKey])];

    /// The values when nothing is configured, for an installation under `prefix`.
    fn defaults(prefix: &Path) -> Self;

    /// Sets a key; `Ok(false)` when there is none of that name, `Err` with what is wrong with the
    /// value.
    fn set(&mut self, name: &str, input: Input<'_>) -> Result<bool, String>;

    /// Every key with its present value, in the order of declaration.
    fn keys(&self) -> Vec<Key>;
}

/// Declares a section: a struct whose fields are the keys. The description of a field is what
/// rustdoc, the default file and the reference page show. With `shared`, the keys of another
/// declaration are keys of this one too, and come first.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        pub struct $Section:ident = $table:literal, off $off:expr, off_tables $off_tables:expr, prefix $prefix:ident
        $(, shared { $( $(#[doc = $group_doc:literal])+ $group:ident: $Group:ty = $group_default:expr; )+ })? {
            $( $(#[doc = $doc:literal])+ $name:ident: $ty:ty = $default:expr $(, check $check:expr)?; )+
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $Section {
            $( $( $(#[doc = $group_doc])+ pub $group: $Group, )+ )?
            $( $(#[doc = $doc])+ pub $name: $ty, )+
        }

        impl $crate::section::Section for $Section {
            const TABLE: &'static str = $table;
            const ABOUT: &'static [&'static str] = &[$($about),*];
            const OFF: &'static [$crate::off::OffKey] = $off;
            const OFF_TABLES: &'static [(&'static str, &'static [$crate::off::OffKey])] = $off_tables;

            fn defaults($prefix: &std::path::Path) -> Self {
                Self { $( $( $group: $group_default, )+ )? $( $name: $default, )+ }
            }

            fn set(&mut self, name: &str, input: $crate::setting::Input<'_>) -> Result<bool, String> {
                match name {
                    $( stringify!($name) => {
                        let value = $crate::setting::read::<$ty>(input)?;
                        $( $check(&value)?; )?
                        self.$name = value;
                    } )+
                    _ => {
                        $( $( if $crate::section::Section::set(&mut self.$group, name, input)? {
                            return Ok(true);
                        } )+ )?
                        return Ok(false);
                    }
                }
                Ok(true)
            }

            fn keys(&self) -> Vec<$crate::section::Key> {
                let own = vec![ $( $crate::section::Key {
                    name: stringify!($name),
                    doc: &[$($doc),+],
                    expected: <$ty as $crate::setting::Setting>::expected(),
                    value: $crate::setting::Setting::to_toml(&self.$name),
                }, )+ ];
                let shared: &[Vec<$crate::section::Key>] =
                    &[ $( $( $crate::section::Section::keys(&self.$group), )+ )? ];
                shared.iter().flatten().cloned().chain(own).collect()
            }
        }
    };
}
pub(crate) use section;

/// For a number that may not be negative.
pub(crate) fn not_negative(number: &f64) -> Result<(), String> {
    if *number < 0.0 { Err(format!("must not be negative, but is {number}")) } else { Ok(()) }
}

/// For a number that has a smallest value.
pub(crate) fn at_least(least: u32) -> impl Fn(&u32) -> Result<(), String> {
    move |number| {
        if *number < least {
            Err(format!("must be at least {least}, not {number}"))
        } else {
            Ok(())
        }
    }
}
