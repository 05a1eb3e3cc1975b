//! `global/pg_control`, as far as a snapshot needs it.
//!
//! The fields read here stand at the same offsets in every version from 11 on (`ControlFileData` in
//! `src/include/catalog/pg_control.h`), in the byte order of the machine that wrote them.

/// The head of `ControlFileData`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlFile {
    pub system_id: u64,
    pub redo_lsn: u64,
    pub wal_timeline: u32,
    pub in_production: bool,
}

const SYSTEM_ID: usize = 0;
const CONTROL_VERSION: usize = 8;
const STATE: usize = 16;
const REDO: usize = 40;
const WAL_TIMELINE: usize = 48;

/// `PG_CONTROL_VERSION` of PostgreSQL 13 to 18 lies between these.
const KNOWN_VERSIONS: std::ops::RangeInclusive<u32> = 1300..=1899;

/// `DBState`: 1 is DB_SHUTDOWNED, 2 DB_SHUTDOWNED_IN_RECOVERY; in all other states recovery has work to do.
const SHUT_DOWN: [u32; 2] = [1, 2];

impl ControlFile {
    /// Bytes of the file that [`ControlFile::parse`] needs.
    pub const LEN: usize = 52;

    /// `None` when the bytes are not a control file of a known version.
    pub fn parse(bytes: &[u8]) -> Option<ControlFile> {
        let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        KNOWN_VERSIONS.contains(&u32_at(CONTROL_VERSION)?).then_some(())?;
        Some(ControlFile {
            system_id: u64_at(SYSTEM_ID)?,
            redo_lsn: u64_at(REDO)?,
            wal_timeline: u32_at(WAL_TIMELINE)?,
            in_production: !SHUT_DOWN.contains(&u32_at(STATE)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_and_short_or_foreign_files_are_not_taken() {
        let mut bytes = [0u8; ControlFile::LEN];
        bytes[0..8].copy_from_slice(&77u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&1300u32.to_ne_bytes());
        bytes[16..20].copy_from_slice(&6u32.to_ne_bytes());
        bytes[40..48].copy_from_slice(&0x1600_0028u64.to_ne_bytes());
        bytes[48..52].copy_from_slice(&3u32.to_ne_bytes());
        let control = ControlFile::parse(&bytes).expect("a control file");
        assert_eq!((control.system_id, control.redo_lsn), (77, 0x1600_0028));
        assert_eq!((control.wal_timeline, control.in_production), (3, true));
        assert_eq!(ControlFile::parse(&bytes[..51]), None);
        bytes[9] = 0xFF;
        assert_eq!(ControlFile::parse(&bytes), None);
    }
}
