//! Accesses of 64 bits to storage, for software drivers.
//!
//! llvmpipe moves every component of every lane of a vector by an access of its
//! own, with a branch for the lane and a test of the bounds, whose cost does not
//! depend on the width. So there the elements of storage are declared as words of
//! 64 bits, which halves the accesses, and taken apart and joined in registers. It
//! is done on the composed text, so that shaders need not know.

use std::ops::Range;

/// A type of storage elements, the one of the same bytes that stands for it, and what
/// converts a value from it and to it.
struct Wide {
    narrow: &'static str,
    wide: &'static str,
    from: &'static str,
    to: &'static str,
}

const TYPES: [Wide; 3] = [
    Wide { narrow: "mat2x4<f32>", wide: "vec4<u64>", from: "from_wide8", to: "to_wide8" },
    Wide { narrow: "vec4<f32>", wide: "vec2<u64>", from: "from_wide4", to: "to_wide4" },
    Wide { narrow: "vec2<u32>", wide: "u64", from: "from_wide2", to: "to_wide2" },
];

/// What a widened shader calls.
const FUNCTIONS: &str = "
fn from_wide4(q: vec2<u64>) -> vec4<f32> {
    let low = vec2<u32>(q);
    let high = vec2<u32>(q >> vec2<u32>(32u));
    return bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
}

fn to_wide4(v: vec4<f32>) -> vec2<u64> {
    let bits = bitcast<vec4<u32>>(v);
    return vec2<u64>(bits.xz) | (vec2<u64>(bits.yw) << vec2<u32>(32u));
}

fn from_wide8(q: vec4<u64>) -> mat2x4<f32> {
    return mat2x4<f32>(from_wide4(q.xy), from_wide4(q.zw));
}

fn to_wide8(v: mat2x4<f32>) -> vec4<u64> {
    return vec4<u64>(to_wide4(v[0]), to_wide4(v[1]));
}

fn from_wide2(q: u64) -> vec2<u32> {
    return vec2<u32>(u32(q), u32(q >> 32u));
}

fn to_wide2(v: vec2<u32>) -> u64 {
    return u64(v.x) | (u64(v.y) << 32u);
}
";

/// Declares the storage of `vec4<f32>`, of pairs of them and of packed halves in composed WGSL
/// as words of 64 bits and converts where it is read as `name[index]`, assigned as
/// `name[index] = value` or added to by `+=`. Other uses are left, and parsing refuses the
/// result. Comments are dropped.
pub fn widen(wgsl: &str) -> String {
    let mut text = without_comments(wgsl);
    for (name, ty) in bindings(&text) {
        let narrow = format!(" {name}: array<{}>;", ty.narrow);
        text = text.replace(&narrow, &format!(" {name}: array<{}>;", ty.wide));
        text = convert(&text, &name, ty);
    }
    text + FUNCTIONS
}

/// Names of the storage that has a wide type, with it.
fn bindings(text: &str) -> Vec<(String, &'static Wide)> {
    let declared = |line: &str| {
        let (name, ty) = line.split_once("var<storage")?.1.split_once("> ")?.1.split_once(": ")?;
        let wide = TYPES.iter().find(|w| ty == format!("array<{}>;", w.narrow))?;
        Some((name.to_string(), wide))
    };
    text.lines().filter_map(declared).collect()
}

/// Converts every element of `name` that `text` reads or assigns.
fn convert(text: &str, name: &str, ty: &Wide) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut rest = text;
    while let Some(Range { start, end }) = element(rest, name) {
        let index = convert(&rest[start + name.len() + 1..end - 1], name, ty);
        out.push_str(&rest[..start]);
        rest = &rest[end..];
        let read = format!("{}({name}[{index}])", ty.from);
        let added = rest.strip_prefix(" += ");
        if let Some(after) = added.or(rest.strip_prefix(" = ")) {
            let (value, following) = after.split_at(after.find(';').unwrap_or(after.len()));
            let value = convert(value, name, ty);
            let value = if added.is_some() { format!("{read} + ({value})") } else { value };
            out.push_str(&format!("{name}[{index}] = {}({value})", ty.to));
            rest = following;
        } else {
            out.push_str(&read);
        }
    }
    out + rest
}

/// The text of a shader alone.
pub(super) fn without_comments(wgsl: &str) -> String {
    wgsl.lines()
        .map(|line| line.split("//").next().unwrap_or_default().trim_end())
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// The first `name[..]` in a text.
pub(super) fn element(text: &str, name: &str) -> Option<Range<usize>> {
    let mut from = 0;
    loop {
        let start = from + text[from..].find(name)?;
        from = start + name.len();
        let longer = text[..start].ends_with(|c: char| c.is_alphanumeric() || "_.".contains(c));
        if !longer && text[from..].starts_with('[') {
            return closing(&text[from..]).map(|close| start..from + close + 1);
        }
    }
}

/// Where the bracket closes that `text` starts with.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' if depth == 1 => return Some(i),
            ']' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_assignments_are_converted_and_nothing_else() {
        let shader = "\
// y[0] = x[0], in quads.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;   // x[i]
@group(0) @binding(2) var<storage, read_write> y: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> table: array<f32>;
@group(0) @binding(4) var<storage, read_write> z: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> w: array<mat2x4<f32>>;
    let max = p.x[1];
    y[i + 1u] = pack4(x[idx[2u]].xyzw + unpack4(y[i]));
    let sum = x[u32(x[0].y)] * table[3];
    z[i] += x[i] * 2.0;
    let second = w[i][1];
";
        let wide = widen(shader);
        let expected = "
@group(0) @binding(1) var<storage, read> x: array<vec2<u64>>;
@group(0) @binding(2) var<storage, read_write> y: array<u64>;
@group(0) @binding(3) var<storage, read> table: array<f32>;
@group(0) @binding(4) var<storage, read_write> z: array<vec2<u64>>;
@group(0) @binding(5) var<storage, read> w: array<vec4<u64>>;
    let max = p.x[1];
    y[i + 1u] = to_wide2(pack4(from_wide4(x[idx[2u]]).xyzw + unpack4(from_wide2(y[i]))));
    let sum = from_wide4(x[u32(from_wide4(x[0]).y)]) * table[3];
    z[i] = to_wide4(from_wide4(z[i]) + (from_wide4(x[i]) * 2.0));
    let second = from_wide8(w[i])[1];
";
        assert_eq!(wide.strip_suffix(FUNCTIONS), Some(expected));
    }
}
