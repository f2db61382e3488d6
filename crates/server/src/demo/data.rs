//! The demo's data: 135,233 places of GeoNames, in the binary as a compressed CSV file (`data/README.md` says where it is
//! from), built into a SQLite database. It never touches a file that exists.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, params};

static CITIES: &[u8] = include_bytes!("../../data/cities.csv.gz");

/// What must be said wherever the data is shown.
pub const ATTRIBUTION: &str = "Contains data of GeoNames.org, licensed under CC BY 4.0.";

/// How many rows there are.
pub const ROWS: u64 = 135_233;

/// The table.
const SCHEMA: &str = "
    create table city (
        id integer primary key,
        name text not null,
        country text not null,
        region text,
        kind text not null,
        lat real not null,
        lon real not null,
        population integer
    );
";

const INDEXES: &str = "
    create index city_country on city (country, name);
    create index city_population on city (population);
";

/// Why the database was not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// SQLite refused.
    #[error("the demo's database {} cannot be built", path.display())]
    Sqlite {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// There is a file already.
    #[error("{} is there already; the demo changes no file that it did not make", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// The data in the binary cannot be read: a broken build.
    #[error("the data in the binary is broken")]
    Data(#[from] csv::Error),
}

/// Builds the database in a new file (in WAL mode) and gives the number of its rows. Takes about half a second.
///
/// # Errors
/// [`BuildError`]; what was begun is left behind.
pub fn build(path: &Path) -> Result<u64, BuildError> {
    if path.exists() {
        return Err(BuildError::Exists { path: path.to_owned() });
    }
    let refuse = |source| BuildError::Sqlite { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut database = Connection::open_with_flags(path, flags).map_err(refuse)?;
    database.pragma_update(None, "journal_mode", "wal").map_err(refuse)?;
    let transaction = database.transaction().map_err(refuse)?;
    transaction.execute_batch(SCHEMA).map_err(refuse)?;
    let rows = {
        let mut insert =
            transaction.prepare("insert into city values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)").map_err(refuse)?;
        let mut rows = 0;
        let mut record = csv::StringRecord::new();
        let mut reader = csv::Reader::from_reader(flate2::read::GzDecoder::new(CITIES));
        while reader.read_record(&mut record)? {
            let city = City::of(&record)?;
            insert
                .execute(params![
                    city.id,
                    city.name,
                    city.country,
                    city.region,
                    city.kind,
                    city.lat,
                    city.lon,
                    city.population
                ])
                .map_err(refuse)?;
            rows += 1;
        }
        rows
    };
    transaction.execute_batch(INDEXES).map_err(refuse)?;
    transaction.commit().map_err(refuse)?;
    Ok(rows)
}

struct City<'a> {
    id: i64,
    name: &'a str,
    country: &'a str,
    region: Option<&'a str>,
    kind: &'a str,
    lat: f64,
    lon: f64,
    population: Option<i64>,
}

impl<'a> City<'a> {
    fn of(record: &'a csv::StringRecord) -> Result<Self, csv::Error> {
        let (id, name, country, region, kind, lat, lon, population): (i64, _, _, &str, _, _, _, i64) =
            record.deserialize(None)?;
        Ok(Self {
            id,
            name,
            country,
            // GeoNames' ways to say "not known".
            region: Some(region).filter(|region| !region.is_empty()),
            kind,
            lat,
            lon,
            population: Some(population).filter(|population| *population != 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_has_every_row_once_with_nulls_reals_and_text_beyond_ascii() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cities.db");
        assert_eq!(build(&path).unwrap(), ROWS);
        let database = Connection::open(&path).unwrap();
        let count = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count("select count(distinct id) from city"), 135_233);
        assert_eq!(count("select count(*) from city where population is null"), 12_788);
        assert_eq!(count("select count(*) from city where region is null"), 25);
        assert_eq!(count("select count(*) from city where name = 'São Paulo'"), 1);
        assert_eq!(
            count("select count(*) from city where typeof(lat) <> 'real' or abs(lat) > 90 or abs(lon) > 180"),
            0
        );
        assert!(matches!(build(&path), Err(BuildError::Exists { .. })));
    }
}
