// Package pgdb opens the PostgreSQL database that the clinical source and the group directory share: connection pools,
// TLS, the migrations, the turn of a load, and which errors are outages. The queries are in the packages that use it.
package pgdb
