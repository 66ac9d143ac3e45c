// Package postgres is the door to PostgreSQL for the clinical source and the group directory: it opens pools, keeps
// the one set of migrations of their common database, and tells an outage from a mistake. Both parts keep their own
// queries.
package pgdb
