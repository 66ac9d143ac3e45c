// Package filedir is the directory on files: groups from a folder of NDJSON, access from a YAML file. Both are read
// again when they change, so no restart is needed; replace files by renaming, never in place. What cannot be read is
// never guessed: opening fails and names file and line, and a file that goes bad later makes every answer that
// depends on it an error that wraps export.ErrUnavailable.
//
// # Groups
//
// The folder's files whose name begins with "Group" and ends in .ndjson or .ndjson.gz hold one Group resource (FHIR
// R4) a line; blank lines are passed over; no other file is opened. A group id that comes twice is an error: nobody
// could say which members are meant. A group that is not active (active false) or not a list of people (actual
// false) is the same as none. Groups may have any number of members: they are streamed and never held.
// Members of a group in a .gz file cost reading what stands before it; put large groups first or into plain files.
//
// A member counts when its entity.reference names a patient (Patient/1, Patient/1/_history/2, or either below an
// http or https base, which is not compared with anything), it is not inactive, and its period covers the present.
// A partial date means all of it, in UTC: a period that ends in 2026-03 ends with that month. Contained (#) and urn:
// references, identifiers and other types are left out.
//
// # Access
//
// The YAML file is a list of entries, one for each owner, with every key given. An owner without an entry may export
// nothing. The types, groups and patients are resource types of FHIR R4, group ids and patient ids; a list may be
// empty, which allows nothing.
//
//   - issuer: https://issuer.example   # the token's iss
//     subject: research-team           # the token's sub
//     types: [Patient, Observation]    # or: all
//     groups: all                      # or a list of ids
//     patients: {except: [p17, p18]}   # or: all, or {only: [p1, p2]}
//   - issuer: https://issuer.example
//     subject: registry
//     types: all
//     groups: [diabetes]
//     patients: all
//
// Unknown, missing and repeated keys, a second entry for an owner, anchors and tags are errors that name the line.
// Errors never hold a patient id.
package filedir
