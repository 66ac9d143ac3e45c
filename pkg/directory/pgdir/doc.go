// Package pgdir is the directory on PostgreSQL: groups, which loads and operators write, and grants, which operators
// write. Each read is one statement, so its result is complete and consistent. Nothing is cached: a removed member or
// grant is gone in the next read. Errors wrap export.ErrUnavailable while the database is unreachable or not migrated.
//
// # Groups
//
// A group comes from a load (BeginLoad), with the same Group resources as in the folder of package filedir, or from an
// operator (Groups.Create). Of two versions of a group the one with the higher meta.versionId wins if both are numbers,
// else the one with the newer meta.lastUpdated, on a tie the one loaded later. A loaded group replaces the old one,
// including changes by operators. A group may have any number of members: neither reading nor loading holds them in
// memory.
//
// The time at which a patient joined a group is kept while the patient stays in it, even if the period changes, and
// is set again for a patient who was removed and added again. It is read from the database's clock before the
// transaction ends, so other sessions see the member slightly later.
//
// # Access
//
// A grant is one row, even with a million patients: the server sorts them and sends them as a stream. An unknown kind of
// list is an error, never a wider grant.
//
// Errors contain ids of groups, never ids of patients.
package pgdir
