// Package loader reads the files of a load: it finds them, reads their resources on all cores, resolves references, and
// passes valid resources on by type. What is left out is counted by type and reason, with the first place, and never
// quoted.
//
// References that are no local literal ones need all files to be read first. So a line with such a reference is deferred:
// if there are any, the files are read a second time for the resources that the references may name, and a third time for
// the deferred lines. Memory does not grow with the files, only with the different references of this kind.
package loader
