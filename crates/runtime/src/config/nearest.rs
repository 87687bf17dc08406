//! Which known key was probably meant.

/// The longest key compared; longer ones are not typing mistakes.
const MAX_COMPARED: usize = 64;

/// The known name that is most like `wanted`, if one is like it at all: at most a third of its characters differ,
/// where upper and lower case are the same and two neighbours in the wrong order count as one difference.
pub fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = |name: &str| {
        name.chars()
            .flat_map(char::to_lowercase)
            .collect::<Vec<char>>()
    };
    let wanted = folded(wanted);
    if wanted.len() > MAX_COMPARED {
        return None;
    }
    known
        .into_iter()
        .filter_map(|name| {
            let candidate = folded(name);
            let allowed = (candidate.len().max(wanted.len()) / 3).max(1);
            let differences = distance(&wanted, &candidate);
            (differences <= allowed).then_some((differences, name))
        })
        .min()
        .map(|(_, name)| name)
}

/// Edit distance with transposition of neighbours.
fn distance(one: &[char], other: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=other.len()).collect();
    for (row, left) in one.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, right) in other.iter().enumerate() {
            let mut best = (above[column] + usize::from(left != right))
                .min(above[column + 1] + 1)
                .min(current[column] + 1);
            if row > 0 && column > 0 && *left == other[column - 1] && one[row - 1] == *right {
                best = best.min(before[column - 1] + 1);
            }
            current.push(best);
        }
        before = std::mem::replace(&mut above, current);
    }
    above[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_find_their_key() {
        let known = [
            "myLegalName",
            "p2pAddress",
            "rpcSettings",
            "rpcUsers",
            "devMode",
            "on",
        ];
        for (wanted, expected) in [
            ("mylegalname", Some("myLegalName")),
            ("myLeaglName", Some("myLegalName")),
            ("p2pAdress", Some("p2pAddress")),
            ("rpcSetting", Some("rpcSettings")),
            ("rpcUser", Some("rpcUsers")),
            ("devmode", Some("devMode")),
            ("no", Some("on")),
            ("somethingElse", None),
            ("", None),
        ] {
            assert_eq!(nearest(wanted, known), expected, "{wanted}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), known), None);
    }

    #[test]
    fn distances() {
        let of = |one: &str, other: &str| {
            distance(
                &one.chars().collect::<Vec<_>>(),
                &other.chars().collect::<Vec<_>>(),
            )
        };
        for (one, other, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("ab", "ba", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(
                (of(one, other), of(other, one)),
                (expected, expected),
                "{one} {other}"
            );
        }
    }
}
