//! Failures that random cases found, shrunk, each as a test that names what went wrong.
