// Package filedir is the directory on files: groups from a folder of NDJSON, access from a YAML file. Both are read
// again when they change, so no restart is needed; replace files by renaming, never in place. An access file that is not
// valid is an error on opening, which names file and line. When it becomes invalid later, every call that depends on it
// returns an error that wraps export.ErrUnavailable.
//
// # Groups
//
// docs/access.md has the names of files, the forms of references and periods, and the order of versions. Member groups are
// held in memory; patients are streamed and never held. To stream a group of a compressed file, everything before it is
// decompressed; put large groups first or into plain files.
//
// A line or a file that cannot be read is logged and concerns only the groups in it: a group whose newest version cannot be
// read is unavailable (directory.ErrUnreadable), and an older version does not replace it.
//
// # Access
//
// The YAML file is a list of entries, one for each owner; every key but levels is required. An owner without an entry may
// export nothing. Types, groups and patients are resource types of FHIR R4, group ids and patient ids. An empty list allows
// nothing. Without levels the owner may export groups only; an empty list of levels is an error.
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
//     levels: [group, patient]         # of group, patient and system
//
// Unknown, missing and duplicate keys, a second entry for an owner, anchors and tags are errors that name the line.
// Errors never contain a patient id.
package filedir
