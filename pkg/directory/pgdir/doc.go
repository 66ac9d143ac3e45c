// Package pgdir is the directory on PostgreSQL: groups, which loads and operators keep, and grants, which operators
// keep. Every answer is read when it is asked for, each in one statement, so that it is whole and of one instant; nothing
// is kept in memory, so a member or a grant that was taken away is gone for the next question. While the database
// cannot be reached, or has not been migrated, errors wrap export.ErrUnavailable.
//
// # Groups
//
// A group comes with a load (BeginLoad), from the same Group resources that the folder of package filedir holds, or
// from an operator (Groups.Create). Of one group the newest meta.lastUpdated counts, on a tie what is loaded later; a
// load that brings a group replaces all of it, what operators did to its members included. A group may have any number
// of members: neither reading nor loading holds them.
//
// When a patient was first known to be in a group is kept for as long as the patient stays in it, whatever happens to
// the period, and begins anew for one who was taken out and comes back. It is the database's clock before the
// transaction ended: to others the member shows a little later.
//
// # Access
//
// A grant is one row, also with a million patients. What a program does not understand in it is an error, never a
// wider grant.
//
// Errors hold ids of groups, never those of patients.
package pgdir
