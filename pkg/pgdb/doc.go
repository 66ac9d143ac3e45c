// Package pgdb opens the PostgreSQL database that the clinical source and the group directory share: connection pools,
// TLS, migrations, the lock of a load, and the classification of outages. The queries are in the packages that use it.
package pgdb
