//! A Rust file as a flat list of tokens, each with its line and whether it is code of tests only. Tokens and not text, so
//! that a word in a comment or in a string breaks no rule; tokens and not a syntax tree, so that macros are seen through.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A token: an identifier, a literal as written, one punctuation character, or one side of a bracket.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub text: String,
    /// From 1.
    pub line: usize,
    /// Compiled for tests only: below `#[test]`, or `#[cfg(test)]` and its like.
    pub tested: bool,
}

/// Reads a source file; none when it is not made of Rust tokens.
pub(super) fn read(source: &str) -> Option<Vec<Token>> {
    let stream: TokenStream = source.parse().ok()?;
    let mut tokens = Vec::new();
    let whole = inner_attribute_says_test(&stream);
    flatten(stream, whole, &mut tokens);
    Some(tokens)
}

/// The modules that the file declares for tests only and keeps in files of their own: `#[cfg(test)] mod name;`.
pub(super) fn modules_for_tests(tokens: &[Token]) -> Vec<&str> {
    tokens
        .windows(3)
        .filter(|window| window[0].tested && window[0].text == "mod" && window[2].text == ";")
        .map(|window| window[1].text.as_str())
        .collect()
}

const ITEM_WORDS: [&str; 14] = [
    "fn",
    "impl",
    "mod",
    "struct",
    "enum",
    "trait",
    "use",
    "const",
    "static",
    "type",
    "union",
    "macro_rules",
    "extern",
    "let",
];

fn flatten(stream: TokenStream, tested: bool, tokens: &mut Vec<Token>) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    // Below an attribute of tests, until the item ends.
    let mut below = false;
    let mut item = false;
    for (index, tree) in trees.iter().enumerate() {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                if attribute_says_test(&trees, index, group) {
                    below = true;
                    item = false;
                }
                let marked = tested || below;
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                tokens.push(Token { text: open.to_owned(), line, tested: marked });
                flatten(group.stream(), marked, tokens);
                tokens.push(Token { text: close.to_owned(), line: group.span_close().end().line, tested: marked });
                if group.delimiter() == Delimiter::Brace {
                    below = false;
                }
            }
            TokenTree::Punct(punct) => {
                let character = punct.as_char();
                tokens.push(Token { text: character.to_string(), line, tested: tested || below });
                if character == ';' || (character == ',' && !item) {
                    below = false;
                }
            }
            TokenTree::Ident(word) => {
                let text = word.to_string();
                item |= below && ITEM_WORDS.contains(&text.as_str());
                tokens.push(Token { text, line, tested: tested || below });
            }
            TokenTree::Literal(literal) => {
                tokens.push(Token { text: literal.to_string(), line, tested: tested || below });
            }
        }
    }
}

/// Whether `trees[index]` is the bracket of an outer attribute like `#[test]`, `#[tokio::test]` or `#[cfg(test)]`.
fn attribute_says_test(trees: &[TokenTree], index: usize, group: &Group) -> bool {
    let outer = index
        .checked_sub(1)
        .is_some_and(|before| matches!(&trees[before], TokenTree::Punct(punct) if punct.as_char() == '#'));
    outer && group.delimiter() == Delimiter::Bracket && says_test(&group.stream())
}

fn inner_attribute_says_test(stream: &TokenStream) -> bool {
    let trees: Vec<TokenTree> = stream.clone().into_iter().collect();
    trees.windows(3).any(|window| {
        let [TokenTree::Punct(hash), TokenTree::Punct(bang), TokenTree::Group(group)] = window else { return false };
        hash.as_char() == '#' && bang.as_char() == '!' && says_test(&group.stream())
    })
}

fn says_test(attribute: &TokenStream) -> bool {
    let trees: Vec<TokenTree> = attribute.clone().into_iter().collect();
    let word = |tree: &TokenTree, wanted: &str| matches!(tree, TokenTree::Ident(word) if word == wanted);
    match trees.as_slice() {
        [first, TokenTree::Group(condition)] if word(first, "cfg") => {
            needs_test(condition.stream().into_iter().collect::<Vec<_>>().as_slice())
        }
        [.., last] if word(last, "test") => true,
        [.., last, TokenTree::Group(_)] if word(last, "test") => true,
        _ => false,
    }
}

/// Whether a condition of `cfg` holds only when `test` does.
fn needs_test(condition: &[TokenTree]) -> bool {
    match condition {
        [TokenTree::Ident(word)] => word == "test",
        [TokenTree::Ident(word), TokenTree::Group(group)] => {
            let trees: Vec<TokenTree> = group.stream().into_iter().collect();
            let mut parts = trees
                .split(|tree| matches!(tree, TokenTree::Punct(punct) if punct.as_char() == ','))
                .filter(|part| !part.is_empty());
            (word == "all" && parts.clone().any(needs_test)) || (word == "any" && parts.all(needs_test))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tested_words(source: &str) -> Vec<String> {
        let tokens = read(source).unwrap();
        tokens
            .into_iter()
            .filter(|token| token.tested && token.text.starts_with("x_"))
            .map(|token| token.text)
            .collect()
    }

    #[test]
    fn code_of_tests_is_told_from_the_rest() {
        assert_eq!(tested_words("#[cfg(test)] mod t { fn x_a() { x_b } } fn x_c() {}"), ["x_a", "x_b"]);
        assert_eq!(tested_words("#[tokio::test(flavor = \"x\")] async fn x_a() {} fn x_c() {}"), ["x_a"]);
        assert_eq!(tested_words("#[cfg(all(test, loom))] use x_a::{x_b}; fn x_c() {}"), ["x_a", "x_b"]);
        assert_eq!(tested_words("struct S { #[cfg(test)] x_a: u8, x_c: u8 }"), ["x_a"]);
        assert_eq!(tested_words("#[cfg(test)] fn x_a<A, B>() {} fn x_c() {}"), ["x_a"]);
        assert_eq!(tested_words("#![cfg(test)] fn x_a() {}"), ["x_a"]);
        assert_eq!(tested_words("#[cfg(all(test, not(loom)))] fn x_a() {} fn x_c() {}"), ["x_a"]);
        for condition in ["not(test)", "any(test, loom)", "feature = \"test\"", "all(loom, unix)", "loom"] {
            assert!(tested_words(&format!("#[cfg({condition})] fn x_c() {{}}")).is_empty(), "{condition}");
        }
        assert!(tested_words("#[derive(Debug)] struct S { x_c: u8 }").is_empty());
    }

    #[test]
    fn modules_for_tests_in_files_of_their_own_are_known() {
        let tokens = read("mod code; #[cfg(test)] mod proof;").unwrap();
        assert_eq!(modules_for_tests(&tokens), ["proof"]);
    }

    #[test]
    fn lines_are_counted_from_one_and_strings_stay_whole() {
        let tokens = read("\nlet s = \"a.b()\";").unwrap();
        assert_eq!(tokens[0].line, 2);
        assert!(tokens.iter().any(|token| token.text == "\"a.b()\""));
    }
}
