// Package filedir is the directory on files: groups from a folder of NDJSON, access from a YAML file. Both are read
// again when they change, so no restart is needed; replace files by renaming, never in place. Opening fails on invalid
// files and names file and line. When a file becomes invalid later, every call that depends on it returns an error
// that wraps export.ErrUnavailable.
//
// # Groups
//
// Files in the folder whose name begins with "Group" and ends in .ndjson or .ndjson.gz have one Group resource (FHIR
// R4) per line. Blank lines and other files are ignored. A duplicate group id is an error, because its members would be
// ambiguous. A group with active or actual false does not exist. Members are streamed and never held in memory. To
// stream a group of a .gz file, everything before it is decompressed; put large groups first or into plain files.
//
// A member is exported when its entity.reference names a patient (Patient/1, Patient/1/_history/2, or either below any
// http or https base), it is not inactive, and its period covers the present. A partial date covers its whole period, in
// UTC: an end of 2026-03 is the end of that month. Contained (#) and urn: references, identifiers and other types are
// left out.
//
// # Access
//
// The YAML file is a list of entries, one for each owner; every key is required. An owner without an entry may export
// nothing. Types, groups and patients are resource types of FHIR R4, group ids and patient ids. An empty list allows
// nothing.
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
// Unknown, missing and duplicate keys, a second entry for an owner, anchors and tags are errors that name the line.
// Errors never contain a patient id.
package filedir
