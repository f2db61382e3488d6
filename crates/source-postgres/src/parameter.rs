//! Parameters as text, so that the server's own input functions read them: no type is known here that the server does not
//! know better. Only arrays and JSON need a look at the parameter's type. It never puts a value into SQL.

use std::error::Error;

use bytes::BytesMut;
use serde_json::value::RawValue;
use tidegate_core::port::{Parameter, SourceError};
use tokio_postgres::types::{Format, IsNull, Kind, ToSql, Type};

use crate::array::push_quoted;

/// A parameter's text form, or NULL.
#[derive(Debug)]
pub(crate) struct TextParameter(Option<Box<str>>);

impl ToSql for TextParameter {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        Ok(match &self.0 {
            None => IsNull::Yes,
            Some(text) => {
                out.extend_from_slice(text.as_bytes());
                IsNull::No
            }
        })
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

/// The text forms of the parameters, for the types that the statement takes.
pub(crate) fn encode(parameters: &[Parameter], types: &[Type]) -> Result<Vec<TextParameter>, SourceError> {
    if parameters.len() != types.len() {
        return Err(SourceError::ParameterCount { expected: types.len(), given: parameters.len() });
    }
    parameters
        .iter()
        .zip(types)
        .enumerate()
        .map(|(at, (parameter, ty))| {
            text(parameter, ty)
                .map(TextParameter)
                .map_err(|reason| SourceError::Parameter { index: at + 1, reason: reason.into() })
        })
        .collect()
}

fn text(parameter: &Parameter, ty: &Type) -> Result<Option<Box<str>>, String> {
    let text: Box<str> = match parameter {
        Parameter::Null => return Ok(None),
        Parameter::Bool(value) => if *value { "true" } else { "false" }.into(),
        Parameter::Integer(value) => value.to_string().into(),
        Parameter::Number(digits) => digits.clone(),
        Parameter::Text(text) => text.clone(),
        Parameter::Json(json) => return structured(json, base(ty)).map(Some),
    };
    if text.contains('\0') {
        return Err("a text of PostgreSQL cannot hold U+0000".into());
    }
    Ok(Some(text))
}

fn structured(json: &str, ty: &Type) -> Result<Box<str>, String> {
    if is_json(ty) {
        return Ok(json.into());
    }
    match ty.kind() {
        Kind::Array(element) => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(json)
                .map_err(|_| format!("it takes a JSON array, or a text such as {{1,2}} (its type is {})", ty.name()))?;
            let mut literal = String::with_capacity(json.len() + 2);
            push_array(&mut literal, &items, base(element), 1)?;
            Ok(literal.into())
        }
        _ => {
            Err(format!("its type is {}: a JSON array or object does not fit; send PostgreSQL's text form", ty.name()))
        }
    }
}

/// The type that a domain is made of.
fn base(ty: &Type) -> &Type {
    match ty.kind() {
        Kind::Domain(inner) => base(inner),
        _ => ty,
    }
}

fn is_json(ty: &Type) -> bool {
    *ty == Type::JSON || *ty == Type::JSONB
}

/// PostgreSQL's arrays have at most this many dimensions.
const DIMENSIONS_MAX: usize = 6;

fn push_array(out: &mut String, items: &[Box<RawValue>], element: &Type, depth: usize) -> Result<(), String> {
    if depth > DIMENSIONS_MAX {
        return Err(format!("an array has at most {DIMENSIONS_MAX} dimensions"));
    }
    let unreadable = |_| "an element cannot be read".to_owned();
    // Of the built-in types only `box` is set apart by another character.
    let delimiter = if *element == Type::BOX { ';' } else { ',' };
    out.push('{');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(delimiter);
        }
        let json = item.get();
        match json.as_bytes().first() {
            Some(b'n') => out.push_str("NULL"),
            Some(b'[' | b'{') if is_json(element) => push_quoted(out, json),
            Some(b'[') => {
                let inner: Vec<Box<RawValue>> = serde_json::from_str(json).map_err(unreadable)?;
                push_array(out, &inner, element, depth + 1)?;
            }
            Some(b'{') => return Err(format!("an object is no {}", element.name())),
            Some(b'"') => {
                let text: String = serde_json::from_str(json).map_err(unreadable)?;
                if text.contains('\0') {
                    return Err("a text of PostgreSQL cannot hold U+0000".into());
                }
                push_quoted(out, &text);
            }
            // A number or a boolean: no character in it needs quotes.
            _ => out.push_str(json),
        }
    }
    out.push('}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(parameter: Parameter, ty: Type) -> Result<Option<Box<str>>, String> {
        text(&parameter, &ty)
    }

    #[test]
    fn json_arrays_become_array_literals_only_for_array_types() {
        let json = |text: &str| Parameter::Json(text.into());
        for (text, ty, expected) in [
            ("[1,null,-2.5e3]", Type::NUMERIC_ARRAY, "{1,NULL,-2.5e3}"),
            (r#"["a,b","NULL",null,"q\"\\"]"#, Type::TEXT_ARRAY, r#"{"a,b","NULL",NULL,"q\"\\"}"#),
            ("[[1,2],[3,4]]", Type::INT4_ARRAY, "{{1,2},{3,4}}"),
            ("[true]", Type::BOOL_ARRAY, "{true}"),
            ("[]", Type::INT8_ARRAY, "{}"),
            (r#"[{"a":1},[2],3]"#, Type::JSONB_ARRAY, r#"{"{\"a\":1}","[2]",3}"#),
            (r#"["(1,1),(0,0)",null]"#, Type::BOX_ARRAY, r#"{"(1,1),(0,0)";NULL}"#),
            (r#"{"a":[1]}"#, Type::JSONB, r#"{"a":[1]}"#),
        ] {
            assert_eq!(encoded(json(text), ty).unwrap().as_deref(), Some(expected));
        }
        for (text, ty) in [
            ("[1]", Type::INT4),
            ("{}", Type::TEXT),
            ("{}", Type::INT4_ARRAY),
            ("[{}]", Type::INT4_ARRAY),
            ("[[[[[[[1]]]]]]]", Type::INT4_ARRAY),
        ] {
            assert!(encoded(json(text), ty).is_err(), "{text}");
        }
    }

    #[test]
    fn a_text_with_a_zero_byte_is_refused_here() {
        assert!(encoded(Parameter::Text("a\0b".into()), Type::TEXT).is_err());
        assert!(encoded(Parameter::Json(r#"["a\u0000b"]"#.into()), Type::TEXT_ARRAY).is_err());
    }

    #[test]
    fn the_number_of_parameters_must_match() {
        let refused = encode(&[Parameter::Null], &[Type::INT4, Type::INT4]);
        assert!(matches!(refused, Err(SourceError::ParameterCount { expected: 2, given: 1 })));
    }
}
