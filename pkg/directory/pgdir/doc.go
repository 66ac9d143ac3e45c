// Package pgdir is the directory on PostgreSQL: groups, which loads and operators write, and grants, which operators
// write. Each answer is one statement, so it is complete and of one instant. Nothing is cached: a removed member or
// grant is gone in the next answer. Errors wrap export.ErrUnavailable while the database is unreachable or not migrated.
//
// # Groups
//
// A group comes from a load (BeginLoad), with the same Group resources as in the folder of package filedir, or from an
// operator (Groups.Create). Of two versions of a group the one with the newer meta.lastUpdated wins, on a tie the one
// loaded later. A load that has a group replaces all of it, including changes of operators. A group may have any number
// of members: neither reading nor loading holds them in memory.
//
// The time at which a patient joined a group is kept while the patient stays in it, whatever happens to the period, and
// is set again for a patient who was removed and comes back. It is the database's clock before the transaction ended,
// so other sessions see the member slightly later.
//
// # Access
//
// A grant is one row, even with a million patients. An unknown kind of list is an error, never a wider grant.
//
// Errors name ids of groups, never ids of patients.
package pgdir
