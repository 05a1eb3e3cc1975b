//! The names people give: branches, tags, and `branch@tag` for snapshots.
//!
//! A name is `[A-Za-z0-9_.-]{1,63}` and starts with neither `-` nor `.`, so that it can stand in a path, a URL
//! and an argument list as it is. The tags `CURRENT` and `HEAD{n}` are the store's own; no branch is named like them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const NAME_LEN_MAX: usize = 63;

/// How like a name must be to be taken for what was meant; 1 is the same.
const NEAR: f64 = 0.8;

/// Names that a hint lists.
const SHOWN_MAX: usize = 10;

/// The human name of a timeline.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BranchName(String);

/// The part of a snapshot's name after the `@`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// `branch@tag`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName {
    pub branch: BranchName,
    pub tag: Tag,
}

impl BranchName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag under which a checkout keeps the state it replaced.
    pub fn head(n: u64) -> Tag {
        Tag(format!("HEAD{{{n}}}"))
    }

    /// Whether only the store itself gives this tag.
    pub fn is_reserved(&self) -> bool {
        matches!(&*self.0, "CURRENT" | "HEAD") || is_head(&self.0)
    }
}

fn is_head(tag: &str) -> bool {
    tag.strip_prefix("HEAD{")
        .and_then(|rest| rest.strip_suffix('}'))
        .is_some_and(|n| !n.is_empty() && n.len() < 20 && n.bytes().all(|b| b.is_ascii_digit()))
}

fn check(name: &str) -> Result<()> {
    let bad = |why| {
        Err(Error::BadName {
            name: name.chars().take(80).collect(),
            why,
        })
    };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    match name.as_bytes() {
        [] => bad("it is empty"),
        bytes if bytes.len() > NAME_LEN_MAX => bad("it is longer than 63 characters"),
        [b'-' | b'.', ..] => bad("it starts with '-' or '.'"),
        bytes if !bytes.iter().all(|b| allowed(*b)) => bad("it has a character that names can't have"),
        _ => Ok(()),
    }
}

impl FromStr for BranchName {
    type Err = Error;

    fn from_str(name: &str) -> Result<BranchName> {
        check(name)?;
        match name {
            "HEAD" | "CURRENT" => Err(Error::ReservedName { name: name.into() }),
            _ => Ok(BranchName(name.into())),
        }
    }
}

impl FromStr for Tag {
    type Err = Error;

    fn from_str(tag: &str) -> Result<Tag> {
        if !is_head(tag) {
            check(tag)?;
        }
        Ok(Tag(tag.into()))
    }
}

impl FromStr for SnapshotName {
    type Err = Error;

    fn from_str(name: &str) -> Result<SnapshotName> {
        let (branch, tag) = name.split_once('@').ok_or_else(|| Error::NoTag {
            name: name.chars().take(80).collect(),
        })?;
        Ok(SnapshotName {
            branch: branch.parse()?,
            tag: tag.parse()?,
        })
    }
}

macro_rules! string_conversions {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<$name> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.to_string()
            }
        }
    )*};
}
string_conversions!(BranchName, Tag, SnapshotName);

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.branch, self.tag)
    }
}

/// A hint for a name that doesn't exist: the one that was probably meant, if one is near, and all that there are.
pub fn known_names(what: &str, name: &str, known: &[String]) -> String {
    if known.is_empty() {
        return format!("there are no {what} yet");
    }
    let shown = known.len().min(SHOWN_MAX);
    let more = match known.len() - shown {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let all = format!("the {what} are: {}{more}", known[..shown].join(", "));
    match nearest(name, known) {
        Some(meant) => format!("did you mean {meant}? {all}"),
        None => all,
    }
}

fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let likeness = |other: &'a String| (strsim::jaro_winkler(differing(name), differing(other)), other);
    let likenesses = known.iter().map(likeness).filter(|(likeness, _)| *likeness > NEAR);
    let nearest = likenesses.max_by(|(a, _), (b, _)| a.total_cmp(b));
    nearest.map(|(_, other)| other.as_str())
}

/// Of snapshots of one branch only the tags can differ.
fn differing(name: &str) -> &str {
    name.split_once('@').map_or(name, |(_, tag)| tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_near_is_offered_first_and_one_that_is_not_is_not() {
        let known = ["main@before", "main@after"].map(String::from);
        let all = "the tags are: main@before, main@after";
        let hint = |name| known_names("tags", name, &known);
        assert_eq!(hint("main@befroe"), format!("did you mean main@before? {all}"));
        assert_eq!(hint("main@x"), all);
        assert_eq!(known_names("tags", "main@x", &[]), "there are no tags yet");
        let many: Vec<String> = (0..12).map(|n| n.to_string()).collect();
        assert!(known_names("tags", "x", &many).ends_with("8, 9 and 2 more"));
    }

    #[test]
    fn names_that_could_be_options_paths_or_too_long_are_refused() {
        for bad in ["", "-x", ".x", "a/b", "a b", "a@b", "ü", &"x".repeat(64)] {
            assert!(bad.parse::<BranchName>().is_err(), "{bad:?}");
        }
        for reserved in ["HEAD", "CURRENT"] {
            assert!(reserved.parse::<BranchName>().is_err(), "{reserved:?}");
        }
        for good in ["main", "a", "A.b_c-9", &"x".repeat(63)] {
            assert!(good.parse::<BranchName>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn head_tags_parse_and_are_reserved() {
        let name: SnapshotName = "main@HEAD{12}".parse().expect("valid");
        assert!(name.tag.is_reserved());
        assert_eq!(name.to_string(), "main@HEAD{12}");
        for bad in ["main@HEAD{}", "main@HEAD{x}", "main@", "@x", "main", "a@b@c"] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad:?}");
        }
    }
}
