//! How a floor stands in the extended attribute of its backing file: `8192-1f3a09c4`, the floor in decimal digits and the
//! crc32c of these.
//!
//! A floor that a flipped bit has moved would let older blocks show through, or hide them. Digits alone, as earlier
//! versions wrote them, are taken too; no flipped bit makes a digit of the hyphen.

pub fn encode(floor: u64) -> String {
    let digits = floor.to_string();
    let crc = crc32c::crc32c(digits.as_bytes());
    format!("{digits}-{crc:08x}")
}

pub fn decode(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let (digits, crc) = match text.split_once('-') {
        Some((digits, crc)) => (digits, Some(crc)),
        None => (text, None),
    };
    let is_sound = crc.is_none_or(|crc| crc == format!("{:08x}", crc32c::crc32c(digits.as_bytes())));
    digits.parse().ok().filter(|_| is_sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_comes_back_as_it_was_or_not_at_all() {
        for floor in [0, 7, 8192, u64::MAX] {
            let value = encode(floor).into_bytes();
            assert_eq!(decode(&value), Some(floor));
            for bit in 0..value.len() * 8 {
                let mut flipped = value.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&flipped), None, "{floor}: bit {bit}");
            }
        }
        assert_eq!(decode(b"8192"), Some(8192));
    }
}
